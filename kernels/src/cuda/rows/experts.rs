//! A mixture of experts around its products (`experts.cu`): who goes where, and the rows in order.
//!
//! ```text
//! route    logits [rows][experts]        → chosen, shares [rows][top_k]
//! place    chosen                        → places [rows][top_k], groups, total
//! gather   rows, places                  → sorted rows, in the products' form
//! product gate|up, gate, product down    one launch each, grid.z = groups: see `StepCounts` in common.cuh
//! norm     places, shares (`Norm::experts`) → the sum, experts ascending, and what follows
//! ```
//! Sorted rows: every expert's, in the order of the step, from a multiple of 8 on. [`ExpertRows`] says how many there are at
//! most.

use super::super::driver::{CudaError, DevicePtr, Function, Launch};
use super::{ByForm, Load, RowKernels, RowOutput, RowTarget, THREADS, columns};
use crate::program::ExpertsSpec;

/// Experts begin at multiples of so many sorted rows: the swizzle's period.
const ALIGN: usize = 8;
/// Rows of a block that routes.
const ROUTE_WARPS: u32 = 4;
/// Threads of a block that places.
const PLACE_THREADS: u32 = 512;
/// Most rows, and choices of them, that are routed, placed and gathered in one launch.
const FEW_ROWS: usize = 8;
const FEW_CHOICES: usize = 64;

/// Sizes for a bucket of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExpertRows {
    /// Groups of products, at most: experts that are held and chosen.
    pub groups: usize,
    /// Sorted rows, at most, gaps included.
    pub sorted: usize,
    /// Rows of the largest group, at most.
    pub largest: usize,
}

impl ExpertRows {
    /// For so many rows, of which each chooses `top_k` of the experts, `held` of them here.
    pub fn new(rows: usize, top_k: usize, held: usize) -> Self {
        let choices = rows * top_k.min(held);
        // Two at least, of several experts: a launch of one group is one whose matrix is known before.
        let groups = held.min(choices.max(2));
        Self { groups, sorted: (choices + groups * (ALIGN - 1)).next_multiple_of(ALIGN), largest: rows }
    }
}

/// `RouteParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct RouteParams {
    logits: DevicePtr,
    chosen: DevicePtr,
    shares: DevicePtr,
    count: DevicePtr,
    experts: u32,
    top_k: u32,
    normalise: u32,
    spare: u32,
}

/// `FewParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct FewParams {
    route: RouteParams,
    place: PlaceParams,
    gather: GatherParams,
}

impl Route {
    fn params(&self, spec: &ExpertsSpec) -> RouteParams {
        let Self { logits, chosen, shares, count } = *self;
        RouteParams {
            logits,
            chosen,
            shares,
            count,
            experts: spec.experts as u32,
            top_k: spec.top_k as u32,
            normalise: u32::from(spec.normalise),
            spare: 0,
        }
    }
}

impl Place {
    fn params(&self, rows: usize, spec: &ExpertsSpec, held: usize) -> PlaceParams {
        let Self { chosen, places, groups, total, count } = *self;
        PlaceParams {
            chosen,
            places,
            groups,
            total,
            count,
            top_k: spec.top_k as u32,
            first: spec.first as u32,
            held: held as u32,
            groups_max: ExpertRows::new(rows, spec.top_k, held).groups as u32,
        }
    }
}

impl Gather {
    fn params(&self) -> GatherParams {
        let Self { input, places, output, count, top_k, width } = *self;
        GatherParams { input, places, output: output.target, count, top_k: top_k as u32, width: width as u32 }
    }
}

/// Rows choose their experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// `[rows][experts]` f32.
    pub logits: DevicePtr,
    /// `[rows][top_k]` u32, ascending.
    pub chosen: DevicePtr,
    /// `[rows][top_k]` f32.
    pub shares: DevicePtr,
    pub count: DevicePtr,
}

/// `PlaceParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct PlaceParams {
    chosen: DevicePtr,
    places: DevicePtr,
    groups: DevicePtr,
    total: DevicePtr,
    count: DevicePtr,
    top_k: u32,
    first: u32,
    held: u32,
    groups_max: u32,
}

/// Experts get their rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// `[rows][top_k]`, as routed.
    pub chosen: DevicePtr,
    /// `[rows][top_k]` u32: sorted rows, or `u32::MAX` for experts that are not held.
    pub places: DevicePtr,
    /// `StepCounts` of [`ExpertRows::groups`] groups.
    pub groups: DevicePtr,
    /// u32: sorted rows in use.
    pub total: DevicePtr,
    pub count: DevicePtr,
}

/// `GatherParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct GatherParams {
    input: DevicePtr,
    places: DevicePtr,
    output: RowTarget,
    count: DevicePtr,
    top_k: u32,
    width: u32,
}

/// Rows go to their places.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gather {
    /// `[rows][width]` f32.
    pub input: DevicePtr,
    pub places: DevicePtr,
    /// Sorted rows.
    pub output: RowOutput,
    pub count: DevicePtr,
    pub top_k: usize,
    pub width: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Functions {
    route: Function,
    place: Function,
    gather: ByForm,
    few: ByForm,
}

impl Functions {
    pub fn load(from: Load<'_>) -> Result<Self, CudaError> {
        Ok(Self {
            route: from("experts", "experts_route")?,
            place: from("experts", "experts_place")?,
            gather: ByForm::load(from, "experts", "experts_gather_", "")?,
            few: ByForm::load(from, "experts", "experts_few_", "")?,
        })
    }

    /// For as many experts as may be held.
    pub fn allow_shared(&self) -> Result<(), CudaError> {
        self.place.allow_shared(4 * HELD_MAX as u32)
    }
}

/// Experts that a device can hold of a layer.
const HELD_MAX: usize = 16_384;

impl RowKernels {
    /// Chooses experts for so many rows.
    pub fn route(&self, rows: usize, spec: &ExpertsSpec, route: &Route) -> Launch {
        let params = route.params(spec);
        let grid = [(rows as u32).div_ceil(ROUTE_WARPS), 1, 1];
        Launch::new(&self.experts.route, grid, 32 * ROUTE_WARPS, 0, params)
    }

    /// Sorts the choices of so many rows by the `held` experts from `spec.first` on.
    pub fn place(&self, rows: usize, spec: &ExpertsSpec, held: usize, place: &Place) -> Launch {
        assert!((1..=HELD_MAX).contains(&held), "as many experts as counters fit in shared memory");
        let params = place.params(rows, spec, held);
        Launch::new(&self.experts.place, [held as u32, 1, 1], PLACE_THREADS, 4 * held as u32, params)
    }

    /// Gathers so many rows, `top_k` times each.
    pub fn gather(&self, rows: usize, gather: &Gather) -> Launch {
        let Gather { output, top_k, width, .. } = *gather;
        let params = gather.params();
        let grid = columns(rows * top_k, output.written(width));
        Launch::new(self.experts.gather.of(output.form), grid, THREADS, 0, params)
    }

    /// [`Self::route`], [`Self::place`] and [`Self::gather`]: in one launch where there are few rows.
    pub fn assign(
        &self,
        rows: usize,
        spec: &ExpertsSpec,
        held: usize,
        (route, place, gather): (&Route, &Place, &Gather),
        launches: &mut Vec<Launch>,
    ) {
        if rows > FEW_ROWS || rows * spec.top_k > FEW_CHOICES {
            launches.push(self.route(rows, spec, route));
            launches.push(self.place(rows, spec, held, place));
            launches.push(self.gather(rows, gather));
            return;
        }
        let params =
            FewParams { route: route.params(spec), place: place.params(rows, spec, held), gather: gather.params() };
        let blocks = gather.output.written(gather.width).div_ceil(4 * THREADS);
        let function = self.experts.few.of(gather.output.form);
        launches.push(Launch::new(function, [blocks, 1, 1], THREADS, 0, params));
    }
}
