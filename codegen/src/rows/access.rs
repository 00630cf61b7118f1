//! Where an element of a value lies in memory.

use super::layout::{Layout, Leaf, Role};
use super::shape::Shape;
use crate::ir::ValueId;
use lightc_dsl::size::Size;

/// A value in memory, as a kernel of a shape reads or writes it.
pub(super) struct Access<'a> {
    pub(super) layout: &'a Layout,
    pub(super) shape: &'a Shape,
    pub(super) value: ValueId,
}

/// A size as a C++ expression of type int.
pub(super) fn size_text(size: &Size) -> String {
    if let Some(value) = size.as_constant() {
        return value.to_string();
    }
    let mut sum = String::new();
    for (monomial, coefficient) in size.terms() {
        let mut factors: Vec<String> = Vec::new();
        if coefficient != 1 || monomial.is_empty() {
            factors.push(coefficient.to_string());
        }
        for (name, power) in monomial {
            let name: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            factors.extend((0..*power).map(|_| format!("size_{name}")));
        }
        if !sum.is_empty() {
            sum += " + ";
        }
        sum += &factors.join(" * ");
    }
    format!("({sum})")
}

fn divides(by: i64, size: &Size) -> bool {
    size.terms().all(|(_, coefficient)| coefficient % by == 0)
}

impl Access<'_> {
    fn leaves(&self) -> &[Leaf] {
        self.layout.leaves(self.value)
    }

    /// Elements of memory from one lane to the next.
    pub(super) fn lane_stride(&self) -> i64 {
        let last = self.layout.slots.len().saturating_sub(1);
        let leaf = self.leaves().iter().find(|leaf| leaf.role == Role::Lane(last));
        leaf.and_then(|leaf| leaf.stride.as_constant()).unwrap_or(1)
    }

    /// Whether everything but the innermost lanes lies at multiples of a number of elements.
    fn is_aligned(&self, by: i64) -> bool {
        let last = self.layout.slots.len().saturating_sub(1);
        let others = self.leaves().iter().filter(|leaf| leaf.role != Role::Lane(last));
        others.into_iter().all(|leaf| divides(by, &leaf.stride))
    }

    /// Whether a thread's lanes of an unrolled index lie in a row, at a multiple of their number.
    pub(super) fn is_vector(&self) -> bool {
        self.layout.is_vector(self.value)
            && self.lane_stride() == 1
            && self.is_aligned(self.shape.vector)
    }

    /// Elements that a thread holds.
    pub(super) fn held(&self) -> i64 {
        self.shape.vector * self.layout.smalls(self.value).iter().product::<i64>()
    }

    /// Whether the unrolled elements of a lane lie in a row, those of the next after them.
    pub(super) fn is_woven(&self) -> bool {
        let smalls: i64 = self.layout.smalls(self.value).iter().product();
        let last = self.layout.slots.len().saturating_sub(1);
        let mut leaves = self.leaves().iter().rev();
        let inner = leaves.by_ref().take_while(|leaf| matches!(leaf.role, Role::Small(_)));
        let n_inner = inner.count();
        let others = self.leaves().iter().rev().skip(n_inner + 1);
        self.layout.is_vector(self.value)
            && smalls > 1
            && n_inner == self.layout.smalls(self.value).len()
            && self.lane_stride() == smalls
            && self.leaves().iter().rev().nth(n_inner).is_some_and(|l| l.role == Role::Lane(last))
            && others.into_iter().all(|leaf| divides(self.held(), &leaf.stride))
    }

    /// Elements of a row, if rows lie one after the other.
    pub(super) fn is_whole_row(&self) -> Option<i64> {
        let rows: Vec<&Leaf> =
            self.leaves().iter().filter(|l| matches!(l.role, Role::Row(_))).collect();
        if rows.len() != self.layout.rows.len() {
            return None;
        }
        let elements = super::group::row_elements(self.layout, self.value);
        let inner = elements * self.layout.walked(self.value);
        let mut stride = Size::constant(inner);
        for (index, (leaf, size)) in rows.iter().zip(&self.layout.rows).enumerate().rev() {
            if leaf.role != Role::Row(index) || leaf.stride != stride {
                return None;
            }
            stride = stride.checked_mul(size)?;
        }
        Some(inner)
    }

    /// Elements from an index of a row part to the next, where that is one number.
    pub(super) fn row_stride(&self, part: usize) -> Option<i64> {
        let mut leaves = self.leaves().iter().filter(|leaf| leaf.role == Role::Row(part));
        let stride = leaves.next()?.stride.as_constant();
        stride.filter(|_| leaves.next().is_none())
    }

    fn lanes_in_a_row(&self) -> Option<i64> {
        let lanes: Vec<&Leaf> =
            self.leaves().iter().filter(|l| matches!(l.role, Role::Lane(_))).collect();
        if lanes.len() != self.layout.slots.len() {
            return None;
        }
        let unit = self.lane_stride();
        let mut stride = unit;
        for (index, (leaf, size)) in lanes.iter().zip(&self.layout.slots).enumerate().rev() {
            if leaf.role != Role::Lane(index) || leaf.stride.as_constant() != Some(stride) {
                return None;
            }
            stride *= size;
        }
        Some(unit)
    }

    fn times(index: &str, by: &str) -> String {
        if by == "1" { index.to_owned() } else { format!("{index} * {by}") }
    }

    fn rest(&self, terms: &mut Vec<String>) {
        let in_a_row = self.lanes_in_a_row();
        if let Some(unit) = in_a_row.filter(|_| !self.layout.slots.is_empty()) {
            terms.push(Self::times("lane", &unit.to_string()));
        }
        for leaf in self.leaves() {
            match leaf.role {
                Role::Lane(slot) if in_a_row.is_none() => {
                    let index = if self.layout.slots.len() == 1 {
                        "lane".to_owned()
                    } else {
                        format!("l{slot}")
                    };
                    terms.push(Self::times(&index, &size_text(&leaf.stride)));
                }
                Role::Small(_) if !self.is_woven() => {
                    let index = super::cuda::variable(&leaf.axis, leaf.nth);
                    terms.push(Self::times(&index, &size_text(&leaf.stride)));
                }
                _ => {}
            }
        }
    }

    /// The offset of the thread's first lane at the loop variables, in a row that can be shifted
    /// along one of its parts.
    pub(super) fn offset(&self, shift: Option<(usize, &str)>) -> String {
        let mut terms = Vec::new();
        if let Some(inner) = self.is_whole_row() {
            // The innermost row part is the next row.
            let row = match shift {
                Some((part, by)) if part + 1 == self.layout.rows.len() => format!("(row {by})"),
                _ => "row".to_owned(),
            };
            terms.push(Self::times(&format!("(long long){row}"), &inner.to_string()));
        } else {
            for leaf in self.leaves() {
                if let Role::Row(part) = leaf.role {
                    let index = match shift {
                        Some((shifted, by)) if shifted == part => format!("(r{part} {by})"),
                        _ => format!("r{part}"),
                    };
                    let by = size_text(&leaf.stride);
                    terms.push(Self::times(&format!("(long long){index}"), &by));
                }
            }
        }
        self.rest(&mut terms);
        if terms.is_empty() { "0".to_owned() } else { terms.join(" + ") }
    }

    /// The place of the thread's first lane at the loop variables in a row.
    pub(super) fn place_in_row(&self) -> String {
        let mut terms = Vec::new();
        self.rest(&mut terms);
        terms.join(" + ")
    }

    /// The place of an element in a result without rows, at the loop variables and lane `i` of the
    /// vector.
    pub(super) fn result_place(&self) -> String {
        let mut terms = Vec::new();
        let last = self.layout.slots.len().saturating_sub(1);
        for leaf in self.leaves() {
            match leaf.role {
                Role::Lane(slot) => {
                    let many = self.layout.slots.len() > 1;
                    let index = if many { format!("l{slot}") } else { "lane".to_owned() };
                    let index = if slot == last { format!("({index} + i)") } else { index };
                    terms.push(Self::times(&index, &size_text(&leaf.stride)));
                }
                Role::Small(_) => {
                    let index = super::cuda::variable(&leaf.axis, leaf.nth);
                    terms.push(Self::times(&index, &size_text(&leaf.stride)));
                }
                Role::Row(_) | Role::Apart(_) => {}
            }
        }
        if terms.is_empty() { "0".to_owned() } else { terms.join(" + ") }
    }
}
