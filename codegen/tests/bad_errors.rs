//! Messages known to be poor: each test names what is wrong with it. One that is mended moves to
//! `errors.rs`.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::{assert_shown, check_errors};

macro_rules! bad_errors {
    ($($(#[$doc:meta])* $name:ident: $source:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() { assert_shown(concat!("bad_errors__", stringify!($name)), &check_errors($source)); })*
    };
}

bad_errors! {
    /// Two arguments in the wrong order are two errors about axes; neither says that exchanging
    /// them would do.
    arguments_in_the_wrong_order: "block Inject(d) {
    forward(x[b, t, d], memory[b, d]) -> [b, t, d] {
        x + memory
    }
}

block A(d) {
    sub inject = Inject()

    forward(x[b, t, d], memory[b, d]) -> [b, t, d] {
        inject(memory, x)
    }
}";
    /// `sum(x, d)` is a common slip. That `over` is missing is only seen by comparing.
    over_that_is_missing: "block A(d) {
    forward(x[b, d]) -> [b] {
        sum(x, d)
    }
}";
    /// The place is right, but only the first of the two calls that lead to it is shown.
    block_that_is_wrong_for_two_calls: "block Rows(d) {
    forward(x[.., d]) -> [..] {
        sum(x, over t)
    }
}

block A(d) {
    param weight[d] ~ ones
    sub rows = Rows()

    forward(x[b, d], y[b, d]) -> (loss[]) {
        mean(rows(x * weight) + rows(y), over b)
    }
}

stage small {
    d     = 4
    model = A()
}";
}
