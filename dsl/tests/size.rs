//! Sizes are polynomials: the canonical form decides equality, and values agree with it.

#![allow(clippy::unwrap_used)]

use lightc_dsl::size::Size;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn size() -> impl Strategy<Value = Size> {
    let leaf = prop_oneof![(-20_i64..20).prop_map(Size::constant), "[a-c]".prop_map(Size::symbol),];
    leaf.prop_recursive(3, 12, 2, |inner| {
        (inner.clone(), 0..3, inner).prop_map(|(a, op, b)| match op {
            0 => a.checked_add(&b).unwrap(),
            1 => a.checked_sub(&b).unwrap(),
            _ => a.checked_mul(&b).unwrap(),
        })
    })
}

fn value(size: &Size) -> i64 {
    let bindings: BTreeMap<String, i64> =
        [("a", 3), ("b", -2), ("c", 7)].map(|(n, v)| (n.to_owned(), v)).into();
    size.evaluate(&bindings).unwrap()
}

#[test]
fn printed_form() {
    let u = Size::symbol("u");
    let sum = u.checked_mul(&u).unwrap().checked_sub(&Size::constant(2)).unwrap();
    assert_eq!(sum.to_string(), "u*u-2");
    assert_eq!(Size::constant(0).to_string(), "0");
    assert_eq!(sum.checked_sub(&sum).unwrap().as_constant(), Some(0));
    assert_eq!(Size::constant(i64::MAX).checked_add(&Size::constant(1)), None);
    assert_eq!(u.exact_div(&Size::constant(0)), None);
    assert_eq!(u.exact_div(&Size::constant(2)), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_follow_the_operations(a in size(), b in size()) {
        prop_assert_eq!(value(&a.checked_add(&b).unwrap()), value(&a) + value(&b));
        prop_assert_eq!(value(&a.checked_sub(&b).unwrap()), value(&a) - value(&b));
        prop_assert_eq!(value(&a.checked_mul(&b).unwrap()), value(&a) * value(&b));
    }

    #[test]
    fn equal_forms_are_equal(a in size(), b in size()) {
        let sum = a.checked_add(&b).unwrap();
        prop_assert_eq!(&sum, &b.checked_add(&a).unwrap());
        prop_assert_eq!(&sum.checked_sub(&b).unwrap(), &a);
        prop_assert_eq!(sum.to_string() == a.to_string(), sum == a);
    }

    #[test]
    fn division_undoes_a_product(a in size(), n in 1_i64..9, name in "[a-c]") {
        let divisor = Size::symbol(name).checked_mul(&Size::constant(n)).unwrap();
        let product = a.checked_mul(&divisor).unwrap();
        prop_assert_eq!(product.exact_div(&divisor), Some(a));
    }
}
