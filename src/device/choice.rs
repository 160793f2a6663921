//! The device that a command line names.

use std::fmt;
use std::str::FromStr;

use super::{Device, Target};
#[cfg(not(all(feature = "sim", feature = "cuda-driver")))]
use crate::error::Error;
use crate::error::Result;

/// `auto`, `cpu`, `cuda`, `cuda:N` or `sim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first NVIDIA GPU if this build can use one and there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The N-th NVIDIA GPU.
    Cuda(usize),
    /// The simulated device.
    Sim,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let number =
            |n: &str| n.parse().map(DeviceChoice::Cuda).map_err(|_| format!("{s:?}: want a number behind cuda:"));
        match s.split_once(':') {
            Some(("cuda", n)) => number(n),
            _ => match s {
                "auto" => Ok(DeviceChoice::Auto),
                "cpu" => Ok(DeviceChoice::Cpu),
                "cuda" => Ok(DeviceChoice::Cuda(0)),
                "sim" => Ok(DeviceChoice::Sim),
                _ => Err("want auto, cpu, cuda, cuda:N or sim".into()),
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(n) => write!(f, "cuda:{n}"),
            DeviceChoice::Sim => f.write_str("sim"),
        }
    }
}

impl DeviceChoice {
    /// The device.
    ///
    /// Errors: `Device` if this build or machine has none of that kind.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::cpu()),
            DeviceChoice::Auto => match auto() {
                Target::Cpu => Ok(Device::cpu()),
                _ => open_cuda(0),
            },
            DeviceChoice::Cuda(n) => open_cuda(n),
            DeviceChoice::Sim => open_sim(),
        }
    }

    /// A plan device for it, also where it is not there.
    pub fn planner(self) -> Device {
        Device::plan_for(match self {
            DeviceChoice::Cuda(_) => Target::Cuda,
            DeviceChoice::Auto => auto(),
            DeviceChoice::Cpu => Target::Cpu,
            DeviceChoice::Sim => Target::Sim,
        })
    }
}

/// What this build and machine have, a line each, for `train --doctor`.
pub fn doctor() -> Vec<String> {
    let mut lines = vec!["cpu".to_string()];
    #[cfg(feature = "sim")]
    lines.push(format!("sim: the simulated device, {} kernels", super::gpu::sim::kernels().count()));
    #[cfg(not(feature = "sim"))]
    lines.push("sim: not in this build (--features sim)".into());
    #[cfg(feature = "cuda-driver")]
    lines.extend(
        super::gpu::cuda::doctor().into_iter().map(|line| format!("cuda: {}", line.trim_start_matches("cuda: "))),
    );
    #[cfg(not(feature = "cuda-driver"))]
    lines.push("cuda: not in this build (--features cuda)".into());
    lines
}

/// A GPU that can be used, or the CPU, saying so where there is a GPU that cannot.
#[cfg(feature = "cuda-driver")]
fn auto() -> Target {
    use super::gpu::cuda;
    if cuda::count().is_err() {
        return Target::Cpu;
    }
    match cuda::unusable() {
        None => Target::Cuda,
        Some(why) => {
            crate::output::tell(format_args!("the CPU is used, because {why}"));
            Target::Cpu
        }
    }
}

#[cfg(feature = "cuda-driver")]
fn open_cuda(index: usize) -> Result<Device> {
    Device::cuda(index)
}

#[cfg(not(feature = "cuda-driver"))]
fn auto() -> Target {
    Target::Cpu
}

#[cfg(not(feature = "cuda-driver"))]
fn open_cuda(index: usize) -> Result<Device> {
    Err(not_built(&format!("cuda:{index}"), "cuda"))
}

#[cfg(feature = "sim")]
fn open_sim() -> Result<Device> {
    Ok(Device::sim(0))
}

#[cfg(not(feature = "sim"))]
fn open_sim() -> Result<Device> {
    Err(not_built("sim", "sim"))
}

#[cfg(not(all(feature = "sim", feature = "cuda-driver")))]
fn not_built(device: &str, feature: &str) -> Error {
    let message =
        format!("not in this build: build with `cargo build --release --features {feature}`, or take --device cpu");
    Error::Device { what: device.into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:9", DeviceChoice::Cuda(9)),
            ("sim", DeviceChoice::Sim),
        ] {
            let read: DeviceChoice = text.parse().unwrap();
            assert_eq!(read, choice);
            assert_eq!(read.to_string().parse(), Ok(choice));
        }
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "sim:1"] {
            assert!(bad.parse::<DeviceChoice>().is_err(), "{bad}");
        }
    }
}
