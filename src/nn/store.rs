//! All parameters of a model, in the order they were made.

use super::init::Init;
use crate::device::Device;
use crate::error::Result;
use crate::tape::{Param, Role};
use crate::tensor::{DType, Tensor};

/// The parameters of a model.
pub struct ParamStore {
    device: Device,
    params: Vec<Param>,
}

impl ParamStore {
    /// No parameters yet.
    pub fn new(device: &Device) -> Self {
        ParamStore { device: device.clone(), params: Vec::new() }
    }

    /// Where they live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All of them, running statistics included.
    pub fn all(&self) -> &[Param] {
        &self.params
    }

    /// The one with this name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|p| p.name() == name)
    }

    /// Those that have a gradient.
    pub fn trainable(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.is_trainable())
    }

    /// Gives a gradient to the parameters that `trained` picks, in one flat buffer, and takes it from the others.
    /// Running statistics are never trained.
    pub fn set_trainable(&self, trained: impl Fn(&Param) -> bool) -> Result<()> {
        for p in &self.params {
            p.set_grad(None)?; // first of all: the old and the new flat buffer never coexist
        }
        let chosen: Vec<&Param> = self.params.iter().filter(|p| p.role() != Role::Statistic && trained(p)).collect();
        let shapes: Vec<Vec<usize>> = chosen.iter().map(|p| p.shape()).collect();
        for (p, g) in chosen.iter().zip(Tensor::flat(&self.device, &shapes, DType::F32)?) {
            p.set_grad(Some(g))?;
        }
        Ok(())
    }

    /// A maker of parameters under no prefix.
    pub fn builder(&mut self, seed: u64) -> Builder<'_> {
        Builder { store: self, prefix: String::new(), seed }
    }
}

/// Makes named parameters.
pub struct Builder<'a> {
    store: &'a mut ParamStore,
    prefix: String,
    seed: u64,
}

impl Builder<'_> {
    /// A maker under `prefix.name`.
    pub fn sub(&mut self, name: impl std::fmt::Display) -> Builder<'_> {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Builder { store: self.store, prefix, seed: self.seed }
    }

    /// A new parameter `prefix.name`.
    pub fn param(&mut self, name: &str, role: Role, shape: &[usize], init: Init) -> Result<Param> {
        let full = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        debug_assert!(self.store.get(&full).is_none(), "two parameters named {full}");
        let device = &self.store.device;
        let mut value = Tensor::empty(device, shape, DType::F32)?;
        if device.has_data() {
            value.write(&init.values(shape, &full, self.seed))?;
        }
        let p = Param::new(full, role, value);
        self.store.params.push(p.clone());
        Ok(p)
    }
}
