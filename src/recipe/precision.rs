//! The types in which a stage's activations and optimizer state are stored. Main types: [`Precision`],
//! [`StatePrecision`].

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Storage type of activations in training. Weights, normalisation statistics, losses, boxes and evaluations are always
/// f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// The best type that is fast on the device: bf16 from compute capability 8.0 on, f16 on older GPUs, f32 on the
    /// CPU.
    Auto,
    /// 32-bit.
    F32,
    /// IEEE half, with a dynamic loss scale.
    F16,
    /// bfloat16, which has f32's range and needs no loss scale.
    Bf16,
}

impl Precision {
    /// The type that activations have on a device.
    ///
    /// Errors: `Device` if the device cannot compute in this type.
    pub fn on(self, device: &Device) -> Result<DType> {
        let best = device.best_float();
        match self {
            Precision::Auto => Ok(best),
            Precision::F32 => Ok(DType::F32),
            Precision::F16 => Ok(DType::F16),
            // A GPU whose best type is f16 has no bf16.
            Precision::Bf16 if best == DType::F16 => Err(Error::Device {
                what: format!("{device:?}"),
                message: "has no bf16, which needs compute capability 8.0: set precision = \"f16\" or \"auto\"".into(),
            }),
            Precision::Bf16 => Ok(DType::BF16),
        }
    }
}

/// Storage type of optimizer state: momentum, or AdamW's running means. The arithmetic is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatePrecision {
    /// 32-bit.
    F32,
    /// bfloat16, rounded stochastically. It has f32's range, so squares of gradients do not underflow.
    Bf16,
    /// f32; bf16 only if a stage fits the memory budget in no other way.
    Auto,
}

impl StatePrecision {
    /// The type of the state's tensors.
    pub fn dtype(self) -> DType {
        match self {
            StatePrecision::F32 | StatePrecision::Auto => DType::F32,
            StatePrecision::Bf16 => DType::BF16,
        }
    }

    /// The value of `state` in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            StatePrecision::F32 => "f32",
            StatePrecision::Bf16 => "bf16",
            StatePrecision::Auto => "auto",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Target;

    #[test]
    fn auto_is_f32_without_a_gpu_and_bf16_where_one_is_planned_for() {
        for device in [Device::cpu(), Device::plan()] {
            assert_eq!(Precision::Auto.on(&device).unwrap(), DType::F32);
            assert_eq!(Precision::F16.on(&device).unwrap(), DType::F16);
            assert_eq!(Precision::Bf16.on(&device).unwrap(), DType::BF16);
        }
        assert_eq!(Precision::Auto.on(&Device::plan_for(Target::Cuda)).unwrap(), DType::BF16);
        assert_eq!(Precision::F32.on(&Device::plan_for(Target::Cuda)).unwrap(), DType::F32);
    }
}
