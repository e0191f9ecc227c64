//! A backend whose panics are errors: a defect in a kernel fails the requests of its step, and not the engine's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use polylink_kernels::{Backend, BackendError, Step, StepOutput};

/// Has the backend do one thing, and waits for it.
///
/// # Errors
/// What the backend said; [`BackendError::Poisoned`] if it panicked: its state is unknown, it must be built anew.
pub(super) fn compute(backend: &mut dyn Backend, step: &Step<'_>, output: &mut StepOutput) -> Result<(), BackendError> {
    let computed = catch_unwind(AssertUnwindSafe(|| {
        let ticket = backend.submit(step)?;
        backend.wait(ticket, output)
    }));
    computed.unwrap_or(Err(BackendError::Poisoned))
}
