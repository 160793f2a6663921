//! Parameters: named tensors that outlive a step, with a gradient if they are trained.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::tensor::elementwise;

/// What a parameter is: decides weight decay and initialisation, and whether it is trained at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weight of a convolution or a linear layer.
    Weight,
    /// Bias of a convolution or a linear layer.
    Bias,
    /// Scale or shift of a normalisation.
    Norm,
    /// Learnt bias of a position: never decayed.
    Position,
    /// Running statistic: saved with the model, never trained.
    Statistic,
}

/// A shared handle of one parameter.
#[derive(Clone)]
pub struct Param(Rc<Inner>);

struct Inner {
    name: String,
    role: Role,
    value: RefCell<Tensor>,
    grad: RefCell<Option<Tensor>>,
    written: Cell<bool>,
}

impl Param {
    /// A frozen parameter; [`Param::set_grad`] makes it trainable.
    pub fn new(name: impl Into<String>, role: Role, value: Tensor) -> Param {
        Param(Rc::new(Inner {
            name: name.into(),
            role,
            value: RefCell::new(value),
            grad: RefCell::new(None),
            written: Cell::new(false),
        }))
    }

    /// Whether both are handles of one parameter.
    pub(super) fn is(&self, other: &Param) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Full dotted name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it is.
    pub fn role(&self) -> Role {
        self.0.role
    }

    /// The value, sharing its buffer: drop it before the next [`Param::value_mut`].
    pub fn value(&self) -> Tensor {
        self.0.value.borrow().clone()
    }

    /// Dimensions.
    pub fn shape(&self) -> Vec<usize> {
        self.0.value.borrow().shape().to_vec()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.0.value.borrow().numel()
    }

    /// The value, to be updated in place.
    pub fn value_mut(&self) -> RefMut<'_, Tensor> {
        self.0.value.borrow_mut()
    }

    /// True if it has a gradient.
    pub fn is_trainable(&self) -> bool {
        self.0.grad.borrow().is_some()
    }

    /// Gives the buffer of its gradient, or takes it away (frozen).
    ///
    /// Errors: `Shape` if the buffer has another shape.
    pub fn set_grad(&self, grad: Option<Tensor>) -> Result<()> {
        if let Some(g) = &grad {
            g.expect_shape(&self.0.name, &self.shape())?;
        }
        *self.0.grad.borrow_mut() = grad;
        self.0.written.set(false);
        Ok(())
    }

    /// The gradient, if it is trained.
    pub fn grad(&self) -> Ref<'_, Option<Tensor>> {
        self.0.grad.borrow()
    }

    /// Forgets the gradient: the next write overwrites. A parameter without any write has gradient 0.
    pub fn clear_grad(&self) -> Result<()> {
        self.0.written.set(false);
        Ok(())
    }

    /// Zeroes a gradient that no rule has written since [`Param::clear_grad`].
    pub fn finish_grad(&self) -> Result<()> {
        if !self.0.written.replace(true)
            && let Some(g) = self.0.grad.borrow_mut().as_mut()
        {
            elementwise::fill(g, 0.0)?;
        }
        Ok(())
    }

    /// Whether a rule has written the gradient since [`Param::clear_grad`].
    pub(crate) fn is_written(&self) -> bool {
        self.0.written.get()
    }

    /// After a recorded step: what its rules would have noted.
    pub(crate) fn set_written(&self, written: bool) {
        self.0.written.set(written);
    }

    pub(super) fn write_grad(&self, f: impl FnOnce(&mut Tensor, bool) -> Result<()>) -> Result<()> {
        let mut grad = self.0.grad.borrow_mut();
        let Some(g) = grad.as_mut() else { return Ok(()) };
        f(g, self.0.written.replace(true))
    }

    pub(super) fn accumulate(&self, g: &Tensor) -> Result<()> {
        g.expect_shape(&self.0.name, &self.shape())?;
        self.write_grad(|dst, add| if add { elementwise::add_assign(dst, g) } else { elementwise::copy(dst, g) })
    }

    /// Overwrites the value from host memory.
    ///
    /// Errors: `Shape` if the number of elements differs.
    pub fn load(&self, data: &[f32]) -> Result<()> {
        let mut value = self.0.value.borrow_mut();
        if value.numel() != data.len() {
            return Err(Error::Shape {
                what: self.0.name.clone(),
                want: format!("{:?}", value.shape()),
                got: vec![data.len()],
            });
        }
        value.write(data)
    }
}

impl std::fmt::Debug for Param {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.0.name, self.0.value.borrow())
    }
}
