//! The number of bytes that each stage may take: how a user writes it, and what a device has free.
//!
//! Main types: [`MemorySize`], [`Budget`].

use std::fmt;
use std::num::IntErrorKind;
use std::str::FromStr;

use crate::device::Device;
use crate::error::Result;
use crate::format::bytes;

/// Smallest part of a GPU's memory that stays free for allocations that libraries make later.
const MARGIN_BYTES: usize = 256 << 20;

/// A number of bytes as a user writes it: `11GiB`, `11GB`, `1.5 GiB`, `12000MiB`, or a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub usize);

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
        let factor: u64 = match unit.trim_start() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err("want a number of bytes, KiB, MiB, GiB, TiB, kB, MB, GB or TB, such as 11GiB".into()),
        };
        let parts = number.split_once('.');
        let (whole, fraction) = parts.unwrap_or((number, "0"));
        // Nine digits are more than anyone means; a fraction of a byte is refused.
        if fraction.is_empty() || fraction.len() > 9 || (factor == 1 && parts.is_some()) {
            return Err("want a number such as 11GiB, 1.5GiB or 12000000000".into());
        }
        let digits = |text: &str| match text.parse::<u128>() {
            Err(error) if *error.kind() == IntErrorKind::PosOverflow => Ok(u128::MAX),
            other => other.map_err(|_| "want a number such as 11GiB or 1.5GiB".to_string()),
        };
        let part = digits(fraction)? * u128::from(factor) / 10_u128.pow(fraction.len() as u32);
        let all = digits(whole)?.checked_mul(factor.into()).and_then(|bytes| bytes.checked_add(part));
        match all.and_then(|bytes| usize::try_from(bytes).ok()) {
            None => Err("more than this machine can count".into()),
            Some(0) => Err("want more than 0 bytes".into()),
            Some(bytes) => Ok(MemorySize(bytes)),
        }
    }
}

/// Bytes that each stage may take, and where the number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// From the user, by `--memory`.
    Given(usize),
    /// From the device: its free memory less a margin.
    Free(usize),
}

impl Budget {
    /// Free memory of a GPU, less a margin for allocations that its libraries make later: a twentieth of the GPU's
    /// memory, at least 256 MiB. `None` for the CPU and the simulated device.
    ///
    /// Errors: `Kernel` if the driver does not report its memory.
    pub fn free(device: &Device) -> Result<Option<Budget>> {
        let memory = device.memory()?;
        Ok(memory.map(|(free, total)| Budget::Free(free.saturating_sub(MARGIN_BYTES.max(total / 20)))))
    }

    /// The number of bytes.
    pub fn bytes(self) -> usize {
        match self {
            Budget::Given(bytes) | Budget::Free(bytes) => bytes,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Given(given) => write!(f, "--memory gives {}", bytes(*given)),
            Budget::Free(free) => write!(f, "the GPU has {} free beside a margin", bytes(*free)),
        }
    }
}
