//! A mixture of experts: its weights behind each other, its rows in the order of experts, one launch per product.
//!
//! ```text
//! route, place, gather (of few rows at once) → product gate|up (all experts) → gate → product down (all experts) → sum of a row's experts
//! ```

use std::sync::Arc;

use super::activations::{Activation, Forms};
use super::driver::{CudaError, Device, DeviceBuffer, DevicePtr, Launch};
use super::exact::products::{ExactProducts, Product};
use super::gemm::{GemmCall, GemmKernels, GemmOutput, RowsOf};
use super::rows::{ExpertRows, Gather, Norm, Place, Route, RowKernels};
use super::weights::{Matrix, Packed};
use crate::backend::{BackendError, Limits};
use crate::program::{ExpertsSpec, RowKind};

/// Bytes of a group's `StepCounts`.
const COUNT_BYTES: usize = 32;

/// The experts of a layer.
#[derive(Debug)]
pub(super) struct Mixture {
    pub held: usize,
    gate_up: Matrix,
    down: Matrix,
}

impl Mixture {
    /// Puts experts' weights behind each other.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if they are of unlike forms.
    pub fn new(device: &Arc<Device>, experts: Vec<[Matrix; 2]>) -> Result<Self, BackendError> {
        let held = experts.len();
        let (mut gate_ups, mut downs) = (Vec::with_capacity(held), Vec::with_capacity(held));
        for [gate_up, down] in experts {
            gate_ups.push(gate_up);
            downs.push(down);
        }
        Ok(Self { held, gate_up: Matrix::stack(device, gate_ups)?, down: Matrix::stack(device, downs)? })
    }

    /// Whether the gate is made by its product.
    fn gated(&self) -> bool {
        matches!(&self.gate_up.packed, Packed::Tiles(tiles) if tiles.shape.gated)
    }

    fn hidden(&self) -> usize {
        self.gate_up.shape.inputs
    }

    fn mlp(&self) -> usize {
        self.down.shape.inputs
    }
}

/// Memory of the largest step, which layers share.
#[derive(Debug)]
pub(super) struct MixtureMemory {
    chosen: DeviceBuffer,
    shares: DeviceBuffer,
    places: DeviceBuffer,
    groups: DeviceBuffer,
    total: DeviceBuffer,
    gathered: Activation,
    gate_up: Activation,
    gated: Activation,
    product: Activation,
}

/// What a program's mixtures need at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MixtureSizes {
    choices: usize,
    groups: usize,
    sorted: usize,
    hidden: usize,
    mlp: usize,
    input: Forms,
    middle: Forms,
}

impl MixtureSizes {
    /// With one more layer, its weights given by what products take of them.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if layers are of unlike sizes.
    pub fn with(
        self,
        spec: &ExpertsSpec,
        held: usize,
        [hidden, mlp]: [usize; 2],
        forms: [Forms; 2],
        rows: usize,
    ) -> Result<Self, BackendError> {
        if self.choices > 0 && [self.hidden, self.mlp] != [hidden, mlp] {
            return Err(BackendError::Unavailable("mixtures of unlike sizes are not made on a GPU".into()));
        }
        let most = ExpertRows::new(rows, spec.top_k, held);
        Ok(Self {
            choices: self.choices.max(rows * spec.top_k),
            groups: self.groups.max(most.groups),
            sorted: self.sorted.max(most.sorted),
            hidden,
            mlp,
            input: self.input.with(forms[0]),
            middle: self.middle.with(forms[1]),
        })
    }

    fn planned(&self) -> [Activation; 4] {
        let f32 = Forms { f32: true, ..Forms::default() };
        let limits = Limits { rows: self.sorted, wanted_rows: 0, slots: 0, kv_blocks: 0, positions: 0 };
        let of = |width, forms| Activation::sized(width, RowKind::Step, &limits, forms);
        let middle = self.middle;
        [of(self.hidden, self.input), of(2 * self.mlp, f32), of(self.mlp, middle), of(self.hidden, f32)]
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        12 * self.choices + COUNT_BYTES * self.groups + self.planned().iter().map(Activation::bytes).sum::<usize>()
    }

    /// Allocates it; `None` for a program without mixtures.
    pub fn allocate(&self, device: &Arc<Device>) -> Result<Option<MixtureMemory>, CudaError> {
        if self.choices == 0 {
            return Ok(None);
        }
        let [gathered, gate_up, gated, product] = self.planned().map(|activation| activation.allocate(device));
        Ok(Some(MixtureMemory {
            chosen: device.alloc(4 * self.choices)?,
            shares: device.alloc(4 * self.choices)?,
            places: device.alloc(4 * self.choices)?,
            groups: device.alloc(COUNT_BYTES * self.groups)?,
            total: device.alloc(4)?,
            gathered: gathered?,
            gate_up: gate_up?,
            gated: gated?,
            product: product?,
        }))
    }
}

/// What a layer reads and writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct MixtureIo {
    /// `[rows][hidden]` f32.
    pub input: DevicePtr,
    /// `[rows][experts]` f32.
    pub router: DevicePtr,
    /// `[rows][hidden]` f32: the sums.
    pub output: DevicePtr,
    /// Rows in use.
    pub count: DevicePtr,
    /// Rows of the bucket.
    pub rows: usize,
}

/// The kernels that it takes.
#[derive(Clone, Copy)]
pub(super) struct MixtureKernels<'a> {
    pub rows: &'a RowKernels,
    pub gemm: &'a GemmKernels,
    pub exact: &'a ExactProducts,
}

impl Mixture {
    /// In which forms its products take their inputs: gate and up, down.
    pub fn forms(gate_up: &Matrix, down: &Matrix) -> [Forms; 2] {
        [gate_up, down].map(Forms::of_matrix)
    }

    /// The launches of one layer.
    pub fn launches(
        &self,
        kernels: &MixtureKernels<'_>,
        spec: &ExpertsSpec,
        memory: &MixtureMemory,
        io: &MixtureIo,
        launches: &mut Vec<Launch>,
    ) {
        let MixtureIo { input, router, output, count, rows } = *io;
        let most = ExpertRows::new(rows, spec.top_k, self.held);
        let (hidden, mlp) = (self.hidden(), self.mlp());
        let [chosen, shares, places] = [&memory.chosen, &memory.shares, &memory.places].map(DeviceBuffer::ptr);
        let (groups, total) = (memory.groups.ptr(), memory.total.ptr());
        let route = Route { logits: router, chosen, shares, count };
        let place = Place { chosen, places, groups, total, count };
        let [first, second] = Self::forms(&self.gate_up, &self.down);
        for (number, form) in first.list().enumerate() {
            let output = memory.gathered.output(form);
            let gather = Gather { input, places, output, count, top_k: spec.top_k, width: hidden };
            if number == 0 {
                kernels.rows.assign(rows, spec, self.held, (&route, &place, &gather), launches);
            } else {
                launches.push(kernels.rows.gather(rows, &gather));
            }
        }
        let (gathered, gated) = (&memory.gathered, &memory.gated);
        let gate = if self.gated() { gated } else { &memory.gate_up };
        self.product(kernels, &self.gate_up, (gathered, gate), Some(spec), groups, most, launches);
        if !self.gated() {
            let gate_up = memory.gate_up.f32();
            for form in second.list() {
                let to = gated.output(form);
                launches.push(kernels.rows.gated_mul(most.sorted, spec.activation, gate_up, mlp, &to, total));
            }
        }
        let product = &memory.product;
        self.product(kernels, &self.down, (gated, product), None, groups, most, launches);
        launches.push(kernels.rows.norm(
            rows,
            &Norm {
                input: product.f32(),
                experts: Some((places, shares, spec.top_k)),
                stream: output,
                count,
                width: hidden,
                ..Norm::default()
            },
        ));
    }

    /// All experts' products by one of their weights; `spec`: of gate and up.
    #[allow(clippy::too_many_arguments)]
    fn product(
        &self,
        kernels: &MixtureKernels<'_>,
        matrix: &Matrix,
        (input, output): (&Activation, &Activation),
        spec: Option<&ExpertsSpec>,
        groups: DevicePtr,
        most: ExpertRows,
        launches: &mut Vec<Launch>,
    ) {
        match &matrix.packed {
            Packed::Tiles(tiles) => {
                let gate = spec.filter(|_| tiles.shape.gated).map(|spec| spec.activation);
                let output = if output.forms.f32 {
                    GemmOutput::F32 { to: output.f32(), pitch: output.width }
                } else {
                    GemmOutput::Tiled { to: output.tiled(), capacity: output.capacity }
                };
                let call = GemmCall {
                    shape: tiles.shape,
                    activation: gate,
                    weights: tiles.buffer.ptr(),
                    input: input.tiled(),
                    input_capacity: input.capacity,
                    bias: None,
                    residual: None,
                    output,
                    counts: groups,
                    rows: RowsOf::Step,
                    rows_max: most.largest,
                };
                launches.push(kernels.gemm.launch_grouped(&call, most.groups, most.sorted));
            }
            Packed::Exact(exact) => {
                let [quants, scales] = input.q8();
                launches.extend(kernels.exact.launches(
                    exact,
                    &Product {
                        input: input.f32(),
                        quants,
                        scales,
                        output: output.f32(),
                        counts: groups,
                        rows: most.largest as u32,
                        groups: most.groups as u32,
                        ..Product::default()
                    },
                ));
            }
        }
    }
}
