//! The list of all parameters of a model, in the order in which they were created.

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
    /// An empty store.
    pub fn new(device: &Device) -> Self {
        ParamStore { device: device.clone(), params: Vec::new() }
    }

    /// The device that holds the parameters.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All parameters, running statistics included.
    pub fn all(&self) -> &[Param] {
        &self.params
    }

    /// The parameter with this name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|p| p.name() == name)
    }

    /// The parameters that have a gradient.
    pub fn trainable(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.is_trainable())
    }

    /// Gives a gradient to each parameter for which `trained` is true, all in one flat buffer, and removes it from the
    /// others. Running statistics are never trained.
    pub fn set_trainable(&self, trained: impl Fn(&Param) -> bool) -> Result<()> {
        for p in &self.params {
            p.set_grad(None)?; // done before the allocation, so that the old and the new flat buffer never coexist
        }
        let chosen: Vec<&Param> = self.params.iter().filter(|p| p.role() != Role::Statistic && trained(p)).collect();
        let shapes: Vec<Vec<usize>> = chosen.iter().map(|p| p.shape()).collect();
        for (p, g) in chosen.iter().zip(Tensor::flat(&self.device, &shapes, DType::F32)?) {
            p.set_grad(Some(g))?;
        }
        Ok(())
    }

    /// A builder with an empty prefix.
    pub fn builder(&mut self, seed: u64) -> Builder<'_> {
        Builder { store: self, prefix: String::new(), seed }
    }
}

/// Creates parameters in a [`ParamStore`], with names under a common prefix.
pub struct Builder<'a> {
    store: &'a mut ParamStore,
    prefix: String,
    seed: u64,
}

impl Builder<'_> {
    /// A builder for parameters under `prefix.name`.
    pub fn sub(&mut self, name: impl std::fmt::Display) -> Builder<'_> {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Builder { store: self.store, prefix, seed: self.seed }
    }

    /// Creates the parameter `prefix.name`.
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
