//! A backend whose panics are errors: a defect in a kernel fails the requests of its step, and not the engine's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use polylink_kernels::{Backend, BackendError, Step, StepOutput, Ticket};

/// Has the backend do one thing, and waits for it.
///
/// # Errors
/// What the backend said; [`BackendError::Poisoned`] if it panicked: its state is unknown, it must be built anew.
pub(super) fn compute(backend: &mut dyn Backend, step: &Step<'_>, output: &mut StepOutput) -> Result<(), BackendError> {
    let ticket = submit(backend, step)?;
    wait(backend, ticket, output)
}

/// Has the backend begin one thing.
///
/// # Errors
/// As [`compute`].
pub(super) fn submit(backend: &mut dyn Backend, step: &Step<'_>) -> Result<Ticket, BackendError> {
    catch_unwind(AssertUnwindSafe(|| backend.submit(step))).unwrap_or(Err(BackendError::Poisoned))
}

/// Waits for what was begun first.
///
/// # Errors
/// As [`compute`].
pub(super) fn wait(backend: &mut dyn Backend, ticket: Ticket, output: &mut StepOutput) -> Result<(), BackendError> {
    catch_unwind(AssertUnwindSafe(|| backend.wait(ticket, output))).unwrap_or(Err(BackendError::Poisoned))
}
