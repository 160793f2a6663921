//! Steps that are not what was planned: each is an error before two buffers could share a byte.

use std::rc::Rc;

use super::{DType, Tensor};
use crate::device::{Device, StepPlan};
use crate::error::{Error, Result};

fn floats(device: &Device, n: usize) -> Result<Tensor> {
    Tensor::empty(device, &[n], DType::F32)
}

/// The plan of a step.
fn plan_of(step: impl FnOnce(&Device) -> Result<()>) -> Rc<StepPlan> {
    let device = Device::plan();
    device.step(None, || step(&device)).expect("tracing").1
}

/// What the CPU says of another step under that plan.
#[track_caller]
fn refused(plan: &Rc<StepPlan>, step: impl FnOnce(&Device) -> Result<()>) -> String {
    let device = Device::cpu();
    let error = device.step(Some(plan), || step(&device)).expect_err("a step that is not the plan");
    assert!(matches!(error, Error::Plan { .. }), "{error}");
    error.to_string()
}

/// x lives over the workspace of `conv`, then y takes the workspace's place.
fn good(device: &Device) -> Result<()> {
    let x = floats(device, 100)?;
    let _op = device.enter("conv");
    let ws = floats(device, 50)?;
    drop(ws);
    let y = floats(device, 50)?;
    drop(x);
    drop(y);
    Ok(())
}

#[test]
fn the_planned_step_runs_again_and_again() {
    let (plan, device) = (plan_of(good), Device::cpu());
    for _ in 0..3 {
        device.step(Some(&plan), || good(&device)).unwrap();
    }
    assert_eq!(device.arena_high_water(), plan.peak_bytes());
    assert_eq!(plan.allocs().iter().map(|a| (a.birth, a.death)).collect::<Vec<_>>(), [(0, 4), (1, 2), (3, 5)]);
    assert_eq!(plan.allocs()[1].offset, plan.allocs()[2].offset, "y has the place of the workspace");
    let tracer = Device::plan();
    for _ in 0..2 {
        let (_, again) = tracer.step(None, || good(&tracer)).unwrap();
        assert_eq!(again.allocs()[2].birth, 3, "events count from the start of the step");
    }
}

/// The workspace is held on the CPU where the plan drops it: y would lie on top of it.
#[test]
fn a_buffer_held_longer_than_planned_is_found_before_another_takes_its_place() {
    let mut reached = false;
    let error = refused(&plan_of(good), |device| {
        let _x = floats(device, 100)?;
        let _op = device.enter("conv");
        let _ws = floats(device, 50)?;
        let _y = floats(device, 50)?;
        reached = true;
        Ok(())
    });
    assert!(!reached, "y was handed out");
    assert!(error.contains("at allocation 2 in conv") && error.contains("event 2, planned 200 in conv"), "{error}");
}

#[test]
fn a_free_that_was_not_planned_stops_the_next_allocation() {
    let mut reached = false;
    let error = refused(&plan_of(good), |device| {
        let x = floats(device, 100)?;
        let _op = device.enter("conv");
        let _ws = floats(device, 50)?;
        drop(x); // the workspace was to go first
        let _y = floats(device, 50)?;
        reached = true;
        Ok(())
    });
    assert!(!reached);
    assert!(error.contains("in conv: it frees the buffer of step as event 2, planned as event 4"), "{error}");
}

#[test]
fn frees_in_another_order_at_the_end_are_an_error() {
    let error = refused(&plan_of(good), |device| {
        let x = floats(device, 100)?;
        let _op = device.enter("conv");
        drop(floats(device, 50)?);
        let y = floats(device, 50)?;
        drop(y);
        drop(x);
        Ok(())
    });
    assert!(error.contains("it frees the buffer of conv as event 4"), "{error}");
}

#[test]
fn another_size_more_or_fewer_allocations_name_the_op() {
    let error = refused(&plan_of(good), |device| {
        let _x = floats(device, 100)?;
        let _op = device.enter("pool");
        floats(device, 51).map(drop)
    });
    let want = "allocation 1 in pool: it wants 204 bytes as event 1, planned 200 in conv as event 1";
    assert!(error.contains(want), "{error}");
    let error = refused(&plan_of(|_| Ok(())), |device| {
        let _op = device.enter("extra");
        floats(device, 1).map(drop)
    });
    assert!(error.contains("in extra") && error.contains("planned none"), "{error}");
    let error = refused(&plan_of(good), |_| Ok(()));
    assert!(error.contains("made 0 allocations, planned 3"), "{error}");
}

/// An error of an allocation that the step does not pass on comes back at its end.
#[test]
fn a_departure_cannot_be_swallowed() {
    let error = refused(&plan_of(good), |device| {
        assert!(floats(device, 7).is_err());
        assert!(floats(device, 100).is_err(), "nothing more is handed out");
        Ok(())
    });
    assert!(error.contains("at allocation 0"), "{error}");
}

#[test]
fn a_step_leaves_no_buffer_behind_and_none_begins_over_one() {
    let mut kept = None;
    let tracer = Device::plan();
    let leak = |device: &Device, kept: &mut Option<Tensor>| -> Result<()> {
        let _op = device.enter("hoard");
        *kept = Some(floats(device, 10)?);
        Ok(())
    };
    let error = tracer.step(None, || leak(&tracer, &mut kept)).unwrap_err().to_string();
    assert!(error.contains("left a buffer of hoard behind"), "{error}");

    let plan = plan_of(|device| floats(device, 10).map(drop));
    let device = Device::cpu();
    let mut kept = None;
    let error = device.step(Some(&plan), || leak(&device, &mut kept)).unwrap_err().to_string();
    assert!(error.contains("the step left 1 buffers behind"), "{error}");
    let fine = || device.step(Some(&plan), || floats(&device, 10).map(drop));
    let error = fine().unwrap_err().to_string();
    assert!(error.contains("1 buffers of an earlier step are still held"), "{error}");
    drop(kept);
    fine().unwrap();
}

#[test]
fn a_step_in_a_step_is_an_error_and_spoils_nothing() {
    let plan = plan_of(good);
    for device in [Device::cpu(), Device::plan()] {
        let ((), seen) = device
            .step(Some(&plan), || {
                let x = floats(&device, 100)?;
                let error = device.step(Some(&plan), || good(&device)).unwrap_err().to_string();
                assert!(error.contains("a step inside a step"), "{device:?}: {error}");
                let _op = device.enter("conv");
                drop(floats(&device, 50)?);
                let y = floats(&device, 50)?;
                drop(x);
                drop(y);
                Ok(())
            })
            .unwrap();
        assert_eq!(seen.allocs().len(), 3, "{device:?}");
        assert_eq!(seen.peak_bytes(), plan.peak_bytes());
    }
}

/// A step that fails is over, on both devices; what it left behind does not count in the next.
#[test]
fn a_step_that_fails_does_not_spoil_the_next() {
    let plan = plan_of(good);
    for device in [Device::cpu(), Device::plan()] {
        let mut kept = None;
        let failed = device.step(Some(&plan), || {
            kept = Some(floats(&device, 100)?);
            Err::<(), _>(Error::value("test", "fails"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "test: fails");
        if device.has_data() {
            drop(kept.take()); // here a step does not even begin: see above
        }
        let (_, seen) = device
            .step(Some(&plan), || {
                let x = floats(&device, 100)?;
                drop(kept.take()); // of the failed trace: no event of this one
                let _op = device.enter("conv");
                drop(floats(&device, 50)?);
                let y = floats(&device, 50)?;
                drop(x);
                drop(y);
                Ok(())
            })
            .unwrap();
        assert_eq!(seen.allocs().iter().map(|a| a.death).collect::<Vec<_>>(), [4, 2, 5], "{device:?}");
    }
}

#[test]
fn a_step_that_panics_is_over() {
    let device = Device::plan();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = device.step(None, || -> Result<()> { panic!("in a step") });
    }));
    assert!(caught.is_err());
    assert_eq!(device.step(None, || good(&device)).unwrap().1.allocs().len(), 3);
}

/// The next step makes the arena anew.
#[test]
fn an_arena_that_was_given_back_is_made_anew() {
    let (device, plan) = (Device::cpu(), plan_of(good));
    for _ in 0..2 {
        device.step(Some(&plan), || good(&device)).unwrap();
        assert_eq!(device.arena_high_water(), plan.peak_bytes());
        device.release_arena();
        assert_eq!(device.arena_high_water(), 0);
    }
    Device::plan().release_arena();
}

/// What lives beyond its op is for the step, what does not is for the op; modules are told from ops.
#[test]
fn a_plan_says_what_its_buffers_are_for() {
    let plan = plan_of(|device| {
        let _module = device.enter_module("backbone");
        let _inner = device.enter_module("layer1");
        let y = {
            let _op = device.enter("conv");
            let _workspace = floats(device, 16)?;
            floats(device, 32)?
        };
        let _op = device.enter("pool");
        drop(y);
        let _x = floats(device, 16)?;
        Ok(())
    });
    let of = |i: usize| (&*plan.allocs()[i].scope, &*plan.allocs()[i].module, plan.allocs()[i].workspace);
    assert_eq!(of(0), ("backbone/layer1/conv", "backbone/layer1", true));
    assert_eq!(of(1), ("backbone/layer1/conv", "backbone/layer1", false));
    assert_eq!(of(2), ("backbone/layer1/pool", "backbone/layer1", true));
    let live: Vec<_> = plan.live_at_peak().iter().map(|row| (row.workspace, row.bytes, row.buffers)).collect();
    assert_eq!((live, plan.peak_scope()), (vec![(false, 128, 1), (true, 64, 1)], Some("backbone/layer1/conv")));
}

#[test]
fn no_memory_is_an_error_with_the_bytes() {
    let device = Device::cpu();
    let no_memory = |error: Error| {
        assert!(matches!(error, Error::Device { .. }), "{error}");
        assert!(error.to_string().contains("no memory for 1152921504606846976 bytes"), "{error}");
    };
    no_memory(Tensor::empty(&device, &[1 << 60], DType::U8).unwrap_err());
    no_memory(device.reserve_arena(1 << 60).unwrap_err());
    assert_eq!(device.persistent_bytes(), 0);
    let plan = plan_of(|device| Tensor::empty(device, &[1 << 60], DType::U8).map(drop));
    no_memory(device.step(Some(&plan), || Ok(())).unwrap_err());
    device.reserve_arena(64).unwrap();
    let plan = plan_of(good);
    device.step(Some(&plan), || good(&device)).unwrap();
}
