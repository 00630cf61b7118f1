//! Boxes of a tensor, where their elements lie in a buffer, and copies between such places.

/// A range per axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) start: Vec<usize>,
    pub(crate) len: Vec<usize>,
}

/// Where the elements of a region lie in a buffer.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) offset: usize,
    pub(crate) strides: Vec<usize>,
}

impl Region {
    /// All of a tensor.
    pub(crate) fn whole(shape: &[usize]) -> Self {
        Region { start: vec![0; shape.len()], len: shape.to_vec() }
    }

    pub(crate) fn n_elements(&self) -> usize {
        self.len.iter().product()
    }

    /// The same with another range of one axis.
    pub(crate) fn with(&self, axis: usize, start: usize, len: usize) -> Self {
        let mut region = self.clone();
        set(&mut region.start, axis, start);
        set(&mut region.len, axis, len);
        region
    }

    /// The same without one axis.
    pub(crate) fn without(&self, axis: usize) -> Self {
        Region { start: without(&self.start, axis), len: without(&self.len, axis) }
    }

    /// Start and length along an axis.
    pub(crate) fn along(&self, axis: usize) -> (usize, usize) {
        (at(&self.start, axis), at(&self.len, axis))
    }

    /// Calls `f` with the row-major position in a tensor of `shape` and the length of every run of
    /// elements along the last axis, in order.
    pub(crate) fn runs(&self, shape: &[usize], mut f: impl FnMut(u64, usize)) {
        let strides = strides(shape);
        let mut index = self.start.clone();
        let last = self.len.len().checked_sub(1);
        let n_runs = self.n_elements() / last.map_or(1, |last| at(&self.len, last)).max(1);
        let n = last.map_or(1, |last| at(&self.len, last));
        for _ in 0..n_runs {
            let position: u64 = index.iter().zip(&strides).map(|(i, s)| (i * s) as u64).sum();
            f(position, n);
            advance(&mut index, self, last.unwrap_or(0));
        }
    }
}

/// The next index over the axes before `n_axes`, row-major.
fn advance(index: &mut [usize], region: &Region, n_axes: usize) {
    for axis in (0..n_axes).rev() {
        let (start, len) = region.along(axis);
        let next = at(index, axis) + 1;
        if next < start + len {
            set(index, axis, next);
            return;
        }
        set(index, axis, start);
    }
}

impl View {
    /// Row-major from the start of a buffer, with `unit` places per element.
    pub(crate) fn dense(len: &[usize], unit: usize) -> Self {
        View { offset: 0, strides: strides(len).into_iter().map(|stride| stride * unit).collect() }
    }

    /// The part that begins `by` positions further along an axis.
    pub(crate) fn shifted(&self, axis: usize, by: usize) -> Self {
        View { offset: self.offset + by * at(&self.strides, axis), strides: self.strides.clone() }
    }

    /// The same without one axis.
    pub(crate) fn without(&self, axis: usize) -> Self {
        View { offset: self.offset, strides: without(&self.strides, axis) }
    }
}

/// Row-major strides of a shape.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    let mut product = 1;
    for (stride, size) in strides.iter_mut().zip(shape).rev() {
        *stride = product;
        product *= size;
    }
    strides
}

/// An element of a list whose index is in range by construction; 0 beyond.
pub(crate) fn at(list: &[usize], index: usize) -> usize {
    list.get(index).copied().unwrap_or(0)
}

fn set(list: &mut [usize], index: usize, value: usize) {
    if let Some(place) = list.get_mut(index) {
        *place = value;
    }
}

fn without(list: &[usize], axis: usize) -> Vec<usize> {
    list.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, value)| *value).collect()
}

/// Copies a box of elements of `unit` places each from one view to another.
pub(crate) fn copy<T: Copy>(
    from: &[T],
    from_view: &View,
    to: &mut [T],
    to_view: &View,
    len: &[usize],
    unit: usize,
) {
    // Axes that are dense on both sides are one run.
    let mut run = unit;
    let mut n_axes = len.len();
    while n_axes > 0 {
        let (axis, size) = (n_axes - 1, at(len, n_axes - 1));
        let dense = at(&from_view.strides, axis) == run && at(&to_view.strides, axis) == run;
        if !(dense || size == 1) {
            break;
        }
        run *= size;
        n_axes = axis;
    }
    let outer = len.get(..n_axes).unwrap_or_default();
    copy_runs(from, from_view, to, to_view, outer, run);
}

fn copy_runs<T: Copy>(
    from: &[T],
    from_view: &View,
    to: &mut [T],
    to_view: &View,
    outer: &[usize],
    run: usize,
) {
    if outer.contains(&0) {
        return;
    }
    let mut index = vec![0; outer.len()];
    let (mut source, mut target) = (from_view.offset, to_view.offset);
    loop {
        let place = to.get_mut(target..target + run);
        if let (Some(place), Some(found)) = (place, from.get(source..source + run)) {
            place.copy_from_slice(found);
        }
        let mut axis = outer.len();
        loop {
            let Some(next) = axis.checked_sub(1) else { return };
            axis = next;
            let (step_from, step_to) = (at(&from_view.strides, axis), at(&to_view.strides, axis));
            let here = at(&index, axis);
            if here + 1 < at(outer, axis) {
                set(&mut index, axis, here + 1);
                source += step_from;
                target += step_to;
                break;
            }
            set(&mut index, axis, 0);
            source -= here * step_from;
            target -= here * step_to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposition_is_a_copy_between_two_views() {
        let from = [1, 2, 3, 4, 5, 6];
        let mut to = [0; 6];
        let to_view = View { offset: 0, strides: vec![1, 2] };
        copy(&from, &View::dense(&[2, 3], 1), &mut to, &to_view, &[2, 3], 1);
        assert_eq!(to, [1, 4, 2, 5, 3, 6]);
    }

    #[test]
    fn runs_are_positions_along_the_last_axis() {
        let region = Region { start: vec![1, 1], len: vec![2, 2] };
        let mut runs = Vec::new();
        region.runs(&[3, 4], |at, n| runs.push((at, n)));
        assert_eq!(runs, [(5, 2), (9, 2)]);
        let mut runs = Vec::new();
        Region::whole(&[]).runs(&[], |at, n| runs.push((at, n)));
        assert_eq!(runs, [(0, 1)]);
    }
}
