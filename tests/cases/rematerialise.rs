//! Ops whose output is rematerialised for the next op on a tape that keeps less: the same bits with one map less in
//! memory.

use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::batch_norm_relu::{BatchNormRelu, BnMode, batch_norm_relu};
use upres::ops::conv2d::{Activation, conv2d};
use upres::ops::gelu::gelu;
use upres::ops::layer_norm::layer_norm;
use upres::ops::linear::linear_last;
use upres::ops::max_pool::max_pool;
use upres::tape::{Param, Role, Tape, Var};
use upres::tensor::{DType, Tensor};

/// N, H, W, C of the rematerialised map: sizes that fill no vector.
const SHAPE: [usize; 4] = [2, 9, 7, 5];
const ELEMENTS: usize = 2 * 9 * 7 * 5;

fn param(dev: &Device, seed: u64, shape: &[usize]) -> Result<Param> {
    let p = Param::new(
        format!("p{seed}"),
        Role::Weight,
        tensor(dev, shape, &uniform(seed, shape.iter().product(), 0.2, 1.0)),
    );
    p.set_grad(Some(Tensor::zeros(dev, shape, DType::F32)?))?;
    Ok(p)
}

/// The op that follows a norm or an activation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    Conv,
    Linear,
    /// Two linear layers: the one that runs backward first rematerialises the map, the other takes it.
    Two,
    /// A frozen linear layer, which does not need the map.
    Frozen,
    Pool,
}

/// An op on a map with some of the parameters.
type Op = fn(&mut Tape, &Var, &[Param; 4]) -> Result<Var>;

const OPS: [(&str, Op, Next); 7] = [
    ("batch norm, convolution", batch_norm, Next::Conv),
    ("batch norm, pooling", batch_norm, Next::Pool),
    ("layer norm, linear", norm, Next::Linear),
    ("layer norm, two", norm, Next::Two),
    ("layer norm, frozen", norm, Next::Frozen),
    ("gelu, two", |tape, x, _| gelu(tape, x), Next::Two),
    ("gelu, linear", |tape, x, _| gelu(tape, x), Next::Linear),
];

fn batch_norm(tape: &mut Tape, x: &Var, [gamma, beta, mean, var]: &[Param; 4]) -> Result<Var> {
    let (g, b) = (tape.param(gamma), tape.param(beta));
    let mode = BnMode::Train { momentum: 0.1 };
    let op = BatchNormRelu { gamma: &g, beta: &b, mean, var, mode, eps: 1e-5, residual: None, relu: true };
    batch_norm_relu(tape, x, op)
}

fn norm(tape: &mut Tape, x: &Var, [gamma, beta, ..]: &[Param; 4]) -> Result<Var> {
    let (g, b) = (tape.param(gamma), tape.param(beta));
    layer_norm(tape, x, &g, &b, 1e-5)
}

/// Returns the output, all gradients and the statistics; and the bytes that the tape has kept.
fn run(dev: &Device, op: Op, next: Next, less: bool) -> Result<(Vec<Tensor>, usize)> {
    let each = [param(dev, 1, &[5])?, param(dev, 2, &[5])?, param(dev, 3, &[5])?, param(dev, 4, &[5])?];
    let w = param(dev, 5, if next == Next::Conv { &[3, 3, 3, 5] } else { &[3, 5] })?;
    if next == Next::Frozen {
        w.set_grad(None)?;
    }
    let mut tape = Tape::new(dev);
    let leaf = tape.leaf(tensor(dev, &SHAPE, &uniform(6, ELEMENTS, -3.0, 3.0)));
    let x = max_pool(&mut tape, &leaf, 1, 1, 0)?; // a copy that the op alone holds, once x is gone
    let y =
        if less { tape.with_rematerialised_outputs(|tape| op(tape, &x, &each))? } else { op(&mut tape, &x, &each)? };
    assert!(!tape.rematerialises_outputs(), "only that part");
    let wv = tape.param(&w);
    let zs = match next {
        Next::Conv => vec![conv2d(&mut tape, &y, &wv, None, 1, 1, Activation::None)?],
        Next::Linear | Next::Frozen => vec![linear_last(&mut tape, &y, &wv, None, Activation::None)?],
        Next::Two => vec![
            linear_last(&mut tape, &y, &wv, None, Activation::Relu)?,
            linear_last(&mut tape, &y, &wv, None, Activation::None)?,
        ],
        Next::Pool => vec![max_pool(&mut tape, &y, 3, 2, 1)?],
    };
    drop((x, y));
    let kept = tape.saved_bytes();
    let mut out: Vec<Tensor> = zs.iter().map(|z| z.value().clone()).collect();
    let seed = |z: Var| {
        let dz = tensor(dev, z.shape(), &uniform(7, z.value().numel(), -1.0, 1.0));
        (z, dz)
    };
    out.extend(tape.backward(zs.into_iter().map(seed).collect())?.get(&leaf).cloned());
    let params = each.iter().chain([&w]);
    params.clone().try_for_each(Param::finish_grad)?; // of those without a gradient: zeros
    out.extend(params.filter_map(|p| p.grad().clone()));
    out.extend(each.iter().map(|p| Tensor::clone(&p.value())));
    Ok((out, kept))
}

#[test]
fn what_is_made_again_is_what_was_kept() {
    for (name, op, next) in OPS {
        let both = |dev: &Device| {
            let ((mut kept, _), (less, _)) = (run(dev, op, next, false)?, run(dev, op, next, true)?);
            if dev.has_data() {
                assert_eq!(kept.len(), less.len());
                for (i, (a, b)) in kept.iter().zip(&less).enumerate() {
                    let bits = |t: &Tensor| floats(t).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert!(bits(a) == bits(b), "{name}, {dev:?}: output {i}");
                }
            }
            kept.extend(less);
            Ok(kept)
        };
        everywhere(both);
        let kept = |less| run(&Device::cpu(), op, next, less).unwrap().1;
        // The copy of the next op and, for a ReLU, the op's own copy are counted separately.
        let copies = if matches!(next, Next::Conv | Next::Two) { 2 } else { 1 };
        assert_eq!(kept(false) - kept(true), copies * 4 * ELEMENTS, "{name}");
    }
}
