//! The streamed evaluation against the meaning of each rule, element by element.

use super::*;
use crate::node::{Keeps, Lazy, Rest};
use crate::testing::InMemory;
use lightc_numerics::draw::{Law, Stream};
use lightc_numerics::hadamard::Hadamard;
use lightc_numerics::int8::{Format, quantize};
use std::sync::{Arc, OnceLock};

/// Numbers without a pattern, from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = Vec::new();
    if !shape.contains(&0) {
        for_each(&Region::whole(shape), |index| {
            all.push(index.to_vec());
            true
        });
    }
    all
}

fn replaced(index: &[usize], axis: usize, value: usize) -> Vec<usize> {
    let mut index = index.to_vec();
    index[axis] = value;
    index
}

fn removed(index: &[usize], axis: usize) -> Vec<usize> {
    let mut index = index.to_vec();
    index.remove(axis);
    index
}

/// What a rule means, one element at a time.
fn meaning(node: &Node, source: &InMemory, seed: u64, index: &[usize]) -> f64 {
    let of = |node: &Node, index: &[usize]| meaning(node, source, seed, index);
    let normal = |key: &str| {
        let place: usize = index.iter().zip(strides(&node.shape)).map(|(i, s)| i * s).sum();
        Stream::new(seed, key).at(Law::Normal { std: 1.0 }, place as u64)
    };
    let line = |of_node: &Node, axis: usize| -> Vec<f64> {
        (0..of_node.shape[axis]).map(|i| of(of_node, &replaced(index, axis, i))).collect()
    };
    let stats = |of_node: &Node, takes: &dyn Fn(&[usize]) -> bool| {
        let all: Vec<f64> = indices(&of_node.shape)
            .iter()
            .filter(|index| takes(index))
            .map(|index| of(of_node, index))
            .collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let mut squares = 0.0;
        all.iter().for_each(|value| squares += (value - mean) * (value - mean));
        (mean, (squares / all.len() as f64).sqrt())
    };
    match &node.kind {
        Kind::Source(tensor) => source.value(*tensor, index),
        Kind::Fill(value) => *value,
        Kind::Draw { law, key } => {
            let place: usize = index.iter().zip(strides(&node.shape)).map(|(i, s)| i * s).sum();
            Stream::new(seed, key).at(*law, place as u64)
        }
        Kind::Scale { of: child, factor } => of(child, index) * factor,
        Kind::Add(left, right) => of(left, index) + of(right, index),
        Kind::Concat { parts, axis } => {
            let mut position = index[*axis];
            for part in parts {
                if position < part.shape[*axis] {
                    return of(part, &replaced(index, *axis, position));
                }
                position -= part.shape[*axis];
            }
            unreachable!("a position beyond all parts")
        }
        Kind::Tile { of: child, axis } => {
            of(child, &replaced(index, *axis, index[*axis] % child.shape[*axis]))
        }
        Kind::Interleave { of: child, axis, times } => {
            of(child, &replaced(index, *axis, index[*axis] / times))
        }
        Kind::Repeat { of: child, axis } => of(child, &removed(index, *axis)),
        Kind::Slice { of: child, axis, start } => {
            of(child, &replaced(index, *axis, index[*axis] + start))
        }
        Kind::Pick { of: child, axis, positions } => {
            of(child, &replaced(index, *axis, positions[index[*axis]]))
        }
        Kind::PickEach { of: child, axis, each, positions } => {
            let position = positions[index[*each]][index[*axis]];
            of(child, &removed(&replaced(index, *axis, position), *each))
        }
        Kind::Permute { of: child, order } => {
            let mut below = index.to_vec();
            order.iter().enumerate().for_each(|(axis, of_axis)| below[*of_axis] = index[axis]);
            of(child, &below)
        }
        Kind::Split { of: child, axis, n_parts } => {
            let sizes = &node.shape[*axis..axis + n_parts];
            let place = index[*axis..].iter().zip(strides(sizes)).map(|(i, s)| i * s).sum();
            let mut below = index[..*axis].to_vec();
            below.push(place);
            below.extend(&index[axis + n_parts..]);
            of(child, &below)
        }
        Kind::Merge { of: child, axis, n_parts } => {
            let sizes = &child.shape[*axis..axis + n_parts];
            let mut below = index[..*axis].to_vec();
            let parts = strides(sizes).into_iter().zip(sizes);
            below.extend(parts.map(|(stride, size)| index[*axis] / stride % size));
            below.extend(&index[axis + 1..]);
            of(child, &below)
        }
        Kind::Keep { of: child, keeps, rest } => {
            let kept = |index: &[usize]| {
                keeps.kept[keeps.each.map_or(0, |each| index[each])][index[keeps.axis]]
            };
            match rest {
                _ if kept(index) => of(child, index),
                Rest::Zero => 0.0,
                Rest::Drawn { key, .. } => {
                    let (mean, std) = stats(child, &|index| !kept(index));
                    mean + std * normal(key)
                }
            }
        }
        Kind::Noise { of: child, factor, key, .. } => {
            let (_, std) = stats(child, &|_| true);
            of(child, index) + factor * std * normal(key)
        }
        Kind::Rotate { of: child, axis, turn } => {
            let mut line = line(child, *axis);
            turn.apply(&mut line);
            line[index[*axis]]
        }
        Kind::Codes { .. } | Kind::Scales { .. } | Kind::Dequantize { .. } => {
            unreachable!("quantized tensors have a test of their own")
        }
        Kind::Mean { of: child, axis } => {
            let line = line(child, *axis);
            line.iter().sum::<f64>() / line.len() as f64
        }
    }
}

fn lazy() -> Lazy {
    Arc::new(OnceLock::new())
}

/// A rule of some kind over smaller ones.
fn any(dice: &mut Dice, source: &InMemory, depth: usize) -> Node {
    if depth == 0 {
        let tensor = dice.roll(source.tensors.len());
        return Node { shape: source.tensors[tensor].0.clone(), kind: Kind::Source(tensor) };
    }
    let child = any(dice, source, depth - 1);
    let shape = child.shape.clone();
    let n_axes = shape.len();
    let axis = dice.roll(n_axes.max(1));
    let of = Box::new(child.clone());
    let with = |size: usize| replaced(&shape, axis, size);
    let size = shape.get(axis).copied().unwrap_or(1);
    let key = format!("key{}", dice.roll(3));
    if n_axes == 0 {
        let shape = vec![1 + dice.roll(4)];
        return Node { shape, kind: Kind::Repeat { of, axis: 0 } };
    }
    let (shape, kind) = match dice.roll(16) {
        0 => (shape.clone(), Kind::Scale { of, factor: 0.75 }),
        1 => {
            let law = Law::Uniform { low: -1.0, high: 2.0 };
            let drawn = Node { shape: shape.clone(), kind: Kind::Draw { law, key } };
            (shape.clone(), Kind::Add(of, Box::new(drawn)))
        }
        2 => {
            let n = 1 + dice.roll(3);
            let other = Node::fill(&with(n), -1.5);
            let order = if dice.roll(2) == 0 { vec![other, child] } else { vec![child, other] };
            (with(size + n), Kind::Concat { parts: order, axis })
        }
        3 => (with(size * 3), Kind::Tile { of, axis }),
        4 => (with(size * 2), Kind::Interleave { of, axis, times: 2 }),
        5 if n_axes < 4 => {
            let mut longer = shape.clone();
            longer.insert(axis, 2);
            (longer, Kind::Repeat { of, axis })
        }
        6 if size > 1 => (with(size - 1), Kind::Slice { of, axis, start: 1 }),
        7 => {
            let positions: Vec<usize> = (0..size + 1).map(|_| dice.roll(size)).collect();
            (with(positions.len()), Kind::Pick { of, axis, positions })
        }
        8 if n_axes < 4 => {
            let (n, each) = (1 + dice.roll(3), dice.roll(n_axes + 1));
            let positions = (0..2).map(|_| (0..n).map(|_| dice.roll(size)).collect()).collect();
            let mut longer = with(n);
            longer.insert(each, 2);
            let axis = if axis >= each { axis + 1 } else { axis };
            (longer, Kind::PickEach { of, axis, each, positions })
        }
        9 => {
            let mut order: Vec<usize> = (0..n_axes).collect();
            order.rotate_left(axis);
            (order.iter().map(|i| shape[*i]).collect(), Kind::Permute { of, order })
        }
        10 if size % 2 == 0 && n_axes < 4 => {
            let mut longer = with(2);
            longer.insert(axis + 1, size / 2);
            (longer, Kind::Split { of, axis, n_parts: 2 })
        }
        11 if axis + 1 < n_axes => {
            let mut shorter = with(size * shape[axis + 1]);
            shorter.remove(axis + 1);
            (shorter, Kind::Merge { of, axis, n_parts: 2 })
        }
        12 | 13 => {
            let each = (0..n_axes).find(|each| *each != axis && dice.roll(2) == 0);
            let n_lists = each.map_or(1, |each| shape[each]);
            // At least one is replaced, or there is nothing to take moments of.
            let list = |dice: &mut Dice| (0..size).map(|i| i > 0 && dice.roll(2) == 0).collect();
            let kept = Arc::new((0..n_lists).map(|_| list(dice)).collect());
            let rest =
                if dice.roll(2) == 0 { Rest::Zero } else { Rest::Drawn { key, moments: lazy() } };
            (shape.clone(), Kind::Keep { of, keeps: Keeps { axis, each, kept }, rest })
        }
        14 => {
            let noise = Kind::Noise { of, factor: 0.1, key, moments: lazy() };
            (shape.clone(), noise)
        }
        _ if size.is_power_of_two() => {
            let turn = Arc::new(Hadamard::new(3, size).expect("a power of two"));
            (shape.clone(), Kind::Rotate { of, axis, turn })
        }
        _ => (shape.clone(), Kind::Mean { of, axis }),
    };
    Node { shape, kind }
}

fn any_region(dice: &mut Dice, shape: &[usize]) -> Region {
    let mut region = Region::whole(shape);
    for (axis, size) in shape.iter().enumerate() {
        let start = dice.roll(*size);
        region = region.with(axis, start, 1 + dice.roll(size - start));
    }
    region
}

#[test]
fn boxes_of_random_rules_are_what_the_rules_mean() {
    let shapes = [vec![4, 3], vec![2, 4, 2], vec![8], vec![], vec![3, 5]];
    for seed in 0..1200 {
        let mut dice = Dice(seed * 7 + 1);
        let dtype = [Dtype::F32, Dtype::BF16][dice.roll(2)];
        let source = InMemory::new(dtype, &shapes);
        let depth = 1 + dice.roll(3);
        let node = any(&mut dice, &source, depth);
        let context = Context { tensors: &source, seed: 3 };
        let region = any_region(&mut dice, &node.shape);
        let found = values(context, &node, &region).expect("evaluates");
        let mut expected = Vec::new();
        for_each(&region, |index| {
            let index: Vec<usize> = index.iter().zip(&region.start).map(|(i, s)| i + s).collect();
            expected.push(meaning(&node, &source, 3, &index));
            true
        });
        let bits = |list: &[f64]| list.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&expected), "seed {seed}: {region:?} of {node:#?}");
        for stored in [Dtype::F32, Dtype::BF16] {
            let mut rounded = vec![0; expected.len() * number::width(stored)];
            number::write(stored, &expected, &mut rounded);
            let mut bytes = vec![0; rounded.len()];
            raw(context, &node, &region, stored, &mut bytes).expect("evaluates");
            assert_eq!(bytes, rounded, "seed {seed}: {stored:?} {region:?} of {node:#?}");
        }
    }
}

#[test]
fn blocks_cover_a_tensor_in_order() {
    for shape in [vec![], vec![7], vec![3, 5], vec![2, 3, 4], vec![5, 1, 1]] {
        for n in [1, 2, 4, 6, 100] {
            let all: Vec<u64> = blocks(&shape, n)
                .flat_map(|region| {
                    let mut places = Vec::new();
                    region.runs(&shape, |at, n| places.extend(at..at + n as u64));
                    assert!(places.len() <= n.max(1), "{shape:?} {n} {region:?}");
                    places
                })
                .collect();
            let n_elements: u64 = shape.iter().map(|n| *n as u64).product();
            assert_eq!(all, (0..n_elements).collect::<Vec<_>>(), "{shape:?} {n}");
        }
    }
}

#[test]
fn what_is_quantized_is_as_the_numerics_say() {
    let source = InMemory::new(Dtype::F32, &[vec![3, 4, 8]]);
    let context = Context { tensors: &source, seed: 3 };
    let leaf = Node { shape: vec![3, 4, 8], kind: Kind::Source(0) };
    let all = values(context, &leaf, &Region::whole(&leaf.shape)).expect("evaluates");
    let all: Vec<f32> = all.into_iter().map(|value| value as f32).collect();
    for format in Format::ALL {
        let expected = quantize(format, &all, 8).expect("is finite");
        let of = || Box::new(leaf.clone());
        let codes = Node { shape: vec![3, 4, 8], kind: Kind::Codes { of: of(), format } };
        let scales = Node { shape: vec![3, 4], kind: Kind::Scales { of: of(), format } };
        let mut found_codes = Vec::new();
        for region in blocks(&codes.shape, 5) {
            let mut bytes = vec![0; region.n_elements()];
            raw(context, &codes, &region, Dtype::I8, &mut bytes).expect("evaluates");
            found_codes.extend(bytes.into_iter().map(|byte| byte as i8));
        }
        assert_eq!(found_codes, expected.codes);
        let found: Vec<f32> = blocks(&scales.shape, 3)
            .flat_map(|region| values(context, &scales, &region).expect("evaluates"))
            .map(|value| value as f32)
            .collect();
        assert_eq!(found, expected.scales);
        let kind = Kind::Dequantize { codes: Box::new(codes), scales: Box::new(scales), format };
        let back = Node { shape: vec![3, 4, 8], kind };
        let region = Region { start: vec![1, 0, 2], len: vec![2, 4, 3] };
        let found = values(context, &back, &region).expect("evaluates");
        let whole = lightc_numerics::int8::dequantize(format, &expected, 8);
        let mut wanted = Vec::new();
        region.runs(&[3, 4, 8], |at, n| wanted.extend_from_slice(&whole[at as usize..][..n]));
        let wanted: Vec<f64> = wanted.into_iter().map(|value| f64::from(value as f32)).collect();
        assert_eq!(found, wanted);
    }
}
