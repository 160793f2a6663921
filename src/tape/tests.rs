//! What the tape promises: order, when memory goes, whose gradient is moved and whose is added.

use std::cell::RefCell;

use super::*;
use crate::device::StepPlan;
use crate::tensor::DType;

type Log = Rc<RefCell<Vec<(&'static str, bool)>>>;

/// `y = 2 x`, with a saved tensor; its backward pass notes its name and whether dy was its own.
struct Twice {
    name: &'static str,
    saved: Tensor,
    log: Log,
}

impl Backward for Twice {
    fn op(&self) -> &'static str {
        self.name
    }
    fn saved_bytes(&self) -> usize {
        self.saved.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        self.log.borrow_mut().push((self.name, dy.is_unique()));
        sink.add(0, double(&dy)?)
    }
}

fn double(x: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::empty(x.device(), x.shape(), DType::F32)?;
    elementwise::copy(&mut y, x)?;
    elementwise::add_assign(&mut y, x)?;
    Ok(y)
}

fn twice(tape: &mut Tape, x: &Var, name: &'static str, log: &Log) -> Result<Var> {
    let _op = x.device().enter(name);
    let y = double(x.value())?;
    let saved = Tensor::empty(x.device(), &[1000], DType::F32)?;
    Ok(tape.record([x], y, Twice { name, saved, log: log.clone() }))
}

/// `y = a + b`: dy goes to both, without a copy.
struct Add;

impl Backward for Add {
    fn op(&self) -> &'static str {
        "add"
    }
    fn saved_bytes(&self) -> usize {
        0
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        sink.add(0, dy.clone())?;
        sink.add(1, dy)
    }
}

fn add(tape: &mut Tape, a: &Var, b: &Var) -> Result<Var> {
    let mut y = Tensor::empty(a.device(), a.shape(), DType::F32)?;
    elementwise::copy(&mut y, a.value())?;
    elementwise::add_assign(&mut y, b.value())?;
    Ok(tape.record([a, b], y, Add))
}

fn tensor(device: &Device, data: &[f32]) -> Tensor {
    Tensor::from_slice(device, &[data.len()], data).unwrap()
}

fn param(device: &Device, data: &[f32], trained: bool) -> Param {
    let p = Param::new("p", Role::Weight, tensor(device, data));
    p.set_grad(trained.then(|| tensor(device, &vec![f32::NAN; data.len()]))).unwrap();
    p
}

fn grad_of(p: &Param) -> Vec<f32> {
    p.grad().as_ref().unwrap().f32s().to_vec()
}

/// A chain and a diamond: `z = 4 x + 2 x + x`, whose branches meet at x.
#[test]
fn rules_run_in_reverse_and_gradients_that_meet_are_added() {
    let (dev, log) = (Device::cpu(), Log::default());
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(tensor(&dev, &[1.0, -2.0]));
    let a = twice(&mut tape, &x, "a", &log).unwrap();
    let b = twice(&mut tape, &a, "b", &log).unwrap();
    let ab = add(&mut tape, &a, &b).unwrap();
    let z = add(&mut tape, &ab, &x).unwrap();
    assert_eq!(z.value().f32s(), [7.0, -14.0]);
    assert_eq!(tape.saved_bytes(), 2 * 4000);
    let unused = tape.leaf(tensor(&dev, &[0.0]));
    let grads = tape.backward(vec![(z, tensor(&dev, &[1.0, 10.0]))]).unwrap();
    assert_eq!(grads.get(&x).unwrap().f32s(), [7.0, 70.0]);
    assert!(grads.get(&unused).is_none() && grads.get(&a).is_none());
    // x and a hold on to the root's dy when b runs; a has a sum of its own.
    assert_eq!(*log.borrow(), [("b", false), ("a", true)]);
}

#[test]
fn several_roots_and_one_value_twice() {
    let (dev, log) = (Device::cpu(), Log::default());
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(tensor(&dev, &[3.0]));
    let a = twice(&mut tape, &x, "a", &log).unwrap();
    let both = add(&mut tape, &a, &a).unwrap();
    let ones = || tensor(&dev, &[1.0]);
    let grads = tape.backward(vec![(both, ones()), (a, ones()), (x.clone(), ones())]).unwrap();
    assert_eq!(grads.get(&x).unwrap().f32s(), [2.0 * (1.0 + 1.0 + 1.0) + 1.0]);
    assert_eq!(log.borrow().len(), 1, "each rule runs once, with the whole of its gradient");
}

/// Two branches on `x = 2 w`, the second inside a scope with a branch of its own: gradients as without branches, and each branch's
/// memory goes with it.
#[test]
fn a_branch_runs_backward_at_once() {
    let dev = Device::cpu();
    let run = |tape: Tape, seed: f32| {
        let (mut tape, log, p) = (tape, Log::default(), param(&dev, &[3.0], true));
        p.clear_grad().unwrap();
        let (w, other) = (tape.leaf(tensor(&dev, &[5.0])), tape.constant(tensor(&dev, &[1.0])));
        let x = twice(&mut tape, &w, "shared", &log).unwrap();
        let (first, at) = tape
            .branch(&[x.clone(), other.clone()], |tape, v| {
                let q = tape.param(&p);
                let sum = add(tape, &v[0], &q)?;
                let y = twice(tape, &sum, "first", &log)?;
                Ok((vec![add(tape, &y, &v[1])?], log.borrow().len()))
            })
            .unwrap();
        let second = tape.scope("head", |tape| {
            let nested = |tape: &mut Tape, v: &[Var]| Ok((vec![twice(tape, &v[0], "nested", &log)?], ()));
            tape.branch(std::slice::from_ref(&x), |tape, v| {
                let (mut losses, ()) = tape.branch(v, nested)?;
                losses.push(twice(tape, &v[0], "second", &log)?);
                Ok((losses, ()))
            })
        });
        let losses: Vec<Var> = first.into_iter().chain(second.unwrap().0).collect();
        let values: Vec<f32> = losses.iter().map(|l| l.value().f32s()[0]).collect();
        let saved = tape.saved_bytes();
        let done = log.borrow().iter().map(|(name, _)| *name).collect::<Vec<_>>();
        drop(x);
        let grads = tape.backward(losses.into_iter().map(|l| (l, tensor(&dev, &[seed]))).collect()).unwrap();
        p.finish_grad().unwrap();
        (values, at, saved, done, grads.get(&w).unwrap().f32s()[0], grad_of(&p)[0])
    };
    for seed in [1.0, 0.25] {
        let want = (vec![27.0, 20.0, 20.0], 12.0 * seed, 2.0 * seed);
        let (values, at, saved, done, dw, dp) = run(Tape::new(&dev), seed);
        assert_eq!((values, dw, dp), want, "one tape");
        assert_eq!((at, saved, done), (0, 4 * 4000, vec![]));
        let (values, at, saved, done, dw, dp) = run(Tape::training(&dev, tensor(&dev, &[seed])), seed);
        assert_eq!((values, dw, dp), want, "branches");
        assert_eq!((at, saved, done), (0, 4000, vec!["first", "nested", "second"]));
    }
    let mut tape = Tape::inference(&dev);
    let x = tape.constant(tensor(&dev, &[1.0]));
    let (losses, ()) = tape.branch(&[x], |tape, v| Ok((vec![twice(tape, &v[0], "a", &Log::default())?], ()))).unwrap();
    assert!(!losses[0].needs_grad());
}

#[test]
fn a_root_of_another_shape_is_an_error() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(tensor(&dev, &[1.0]));
    let error = tape.backward(vec![(x, tensor(&dev, &[1.0, 2.0]))]).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("backward: gradient of the root"), "{error}");
}

#[test]
fn nothing_is_kept_that_no_gradient_needs() {
    let (dev, log) = (Device::cpu(), Log::default());
    let frozen = param(&dev, &[1.0], false);
    let mut tape = Tape::new(&dev);
    let x = tape.constant(tensor(&dev, &[1.0]));
    let w = tape.param(&frozen);
    assert!(!tape.will_record(&[&x, &w]) && !w.needs_grad());
    let y = twice(&mut tape, &x, "of_a_constant", &log).unwrap();
    let z = add(&mut tape, &y, &w).unwrap();
    assert!(!z.needs_grad() && tape.saved_bytes() == 0);
    tape.backward(vec![(z, tensor(&dev, &[1.0]))]).unwrap();

    let mut tape = Tape::inference(&dev);
    let (x, w) = (tape.leaf(tensor(&dev, &[1.0])), tape.param(&param(&dev, &[1.0], true)));
    let y = twice(&mut tape, &x, "in_evaluation", &log).unwrap();
    assert!(!tape.will_record(&[&x, &w, &y]) && tape.saved_bytes() == 0);
    assert!(log.borrow().is_empty());
}

#[test]
fn the_first_write_of_a_step_overwrites_and_later_ones_add() {
    let (dev, log) = (Device::cpu(), Log::default());
    let p = param(&dev, &[1.0, 1.0], true);
    let pass = |dy: [f32; 2]| {
        let mut tape = Tape::new(&dev);
        let w = tape.param(&p);
        let y = twice(&mut tape, &w, "a", &log).unwrap();
        let z = add(&mut tape, &y, &w).unwrap();
        tape.backward(vec![(z, tensor(&dev, &dy))]).unwrap();
        p.grad().as_ref().unwrap().f32s().to_vec()
    };
    for _ in 0..2 {
        p.clear_grad().unwrap();
        assert_eq!(pass([1.0, 2.0]), [3.0, 6.0], "what was there before (NaN, the last step) is gone");
        assert_eq!(pass([10.0, 10.0]), [33.0, 36.0]);
        p.finish_grad().unwrap();
        assert_eq!(grad_of(&p), [33.0, 36.0]);
    }
    p.clear_grad().unwrap();
    p.finish_grad().unwrap();
    assert_eq!(grad_of(&p), [0.0, 0.0], "without a write it is 0");
    assert_eq!(pass([1.0, 1.0]), [3.0, 3.0]);
    let error = p.set_grad(Some(tensor(&dev, &[1.0]))).unwrap_err().to_string();
    assert!(error.starts_with("p: want [2]"), "{error}");
}

/// `Sink::write` gives a parameter's own gradient, and a fresh tensor for anything else.
#[test]
fn write_hands_out_the_parameters_own_gradient() {
    struct Written;
    impl Backward for Written {
        fn op(&self) -> &'static str {
            "written"
        }
        fn saved_bytes(&self) -> usize {
            0
        }
        fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
            assert!(sink.needs(0) && sink.needs(1) && !sink.needs(2) && !sink.needs(3));
            for i in 0..3 {
                sink.write(i, dy.device(), dy.shape(), DType::F32, |target, accumulate| {
                    assert!(i < 2, "skipped where it is not wanted");
                    if accumulate { elementwise::add_assign(target, &dy) } else { elementwise::copy(target, &dy) }
                })?;
            }
            Ok(())
        }
    }
    let dev = Device::cpu();
    let (p, frozen) = (param(&dev, &[1.0], true), param(&dev, &[1.0], false));
    let address = p.grad().as_ref().unwrap().f32s().as_ptr();
    let mut tape = Tape::new(&dev);
    let (w, x, f) = (tape.param(&p), tape.leaf(tensor(&dev, &[1.0])), tape.param(&frozen));
    let roots: Vec<_> = [1.0, 2.0]
        .map(|dy| {
            let y = tape.record([&w, &x, &f], tensor(&dev, &[0.0]), Written);
            (y, tensor(&dev, &[dy]))
        })
        .into();
    let grads = tape.backward(roots).unwrap();
    assert_eq!((grad_of(&p), grads.get(&x).unwrap().f32s()), (vec![3.0], &[3.0f32][..]));
    assert_eq!(p.grad().as_ref().unwrap().f32s().as_ptr(), address);
}

/// On the plan device: names of the backward pass, saved memory that goes as the scan reaches it, moves without memory.
#[test]
fn the_plan_shows_names_and_when_memory_goes() {
    let (dev, log) = (Device::plan(), Log::default());
    let step = || {
        let mut tape = Tape::new(&dev);
        let x = tape.leaf(Tensor::empty(&dev, &[10], DType::F32)?);
        let a = tape.scope("stem", |tape| twice(tape, &x, "a", &log))?;
        let b = tape.scope("neck", |tape| tape.scope("top", |tape| twice(tape, &a, "b", &log)))?;
        drop(a);
        let dy = Tensor::empty(&dev, &[10], DType::F32)?;
        tape.backward(vec![(b, dy)]).map(drop)
    };
    let ((), plan): ((), Rc<StepPlan>) = dev.step(None, step).unwrap();
    let rows = plan.allocs().iter().map(|p| (&*p.scope, p.bytes)).collect::<Vec<_>>();
    let want = [
        ("step", 40),                // x
        ("stem/a", 40),              // its y
        ("stem/a", 4000),            // what it saves
        ("neck/top/b", 40),          // its y
        ("neck/top/b", 4000),        // what it saves
        ("step", 40),                // dy
        ("backward/neck/top/b", 40), // moved to a, then to the leaf: no sums
        ("backward/stem/a", 40),
    ];
    assert_eq!(rows, want);
    let [saved_a, saved_b, da, dx] = [2, 4, 6, 7].map(|i| &plan.allocs()[i]);
    assert!(saved_b.death < dx.birth, "b's rule is gone before a's runs");
    assert!(saved_a.death > dx.birth && da.death > dx.birth && da.death < dx.death);
}
