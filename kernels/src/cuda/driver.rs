//! The driver, as far as this crate needs it: one device, one stream, memory, kernels, launches, graphs.
//!
//! Kernels come compiled (`kernels/build.rs`); the driver's library is opened when the program runs. Everything goes over one
//! stream, so that what is launched first is complete before what is launched next reads it ([`Launch`] says how the two
//! overlap all the same).
#![allow(unsafe_code)] // calls into the driver

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::{CudaUnavailable, probe};

mod memory;

pub(crate) use self::memory::{DeviceBuffer, Pinned};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// An address in the device's memory.
pub(crate) type DevicePtr = u64;

/// What the driver answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// A call failed. Most of these leave the device unusable for this process.
    #[error("CUDA: {what}: {reason}")]
    Driver {
        /// What was asked for.
        what: &'static str,
        /// The driver's name of the error.
        reason: String,
    },
    /// Memory that is not there.
    #[error("CUDA: {bytes} bytes were asked for, {free} are free")]
    Memory {
        /// Asked for.
        bytes: usize,
        /// There.
        free: usize,
    },
    /// A kernel that this program was built without.
    #[error("CUDA: no kernel {name} in module {module}: this program was built without it")]
    NoKernel {
        /// File of the kernel.
        module: String,
        /// Its name.
        name: String,
    },
}

fn failed(what: &'static str) -> impl Fn(result::DriverError) -> CudaError {
    move |error| CudaError::Driver { what, reason: format!("{error:?}") }
}

type Result<T> = std::result::Result<T, CudaError>;

/// An opened device.
#[derive(Debug)]
pub(crate) struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// By file.
    modules: Mutex<HashMap<&'static str, Module>>,
    name: String,
    multiprocessors: u32,
    shared_bytes_max: u32,
    capability: (i32, i32),
}

#[derive(Clone, Copy, Debug)]
struct Module(sys::CUmodule);

// SAFETY: handles of the driver may be used by any thread; the context is made current before each use.
unsafe impl Send for Device {}
// SAFETY: as above; the driver's calls are safe to be made at once.
unsafe impl Sync for Device {}
// SAFETY: as above.
unsafe impl Send for Module {}

impl Device {
    /// Opens a device of the driver's list.
    pub fn open(ordinal: usize) -> std::result::Result<Arc<Self>, CudaUnavailable> {
        use sys::CUdevice_attribute as Attribute;
        let found = probe()?;
        let device = found
            .get(ordinal)
            .ok_or_else(|| CudaUnavailable::Driver(format!("device {ordinal} of {} does not exist", found.len())))?;
        if device.compute_capability < (8, 0) {
            let (major, minor) = device.compute_capability;
            let reason = format!("{} has compute capability {major}.{minor}, 8.0 is needed", device.name);
            return Err(CudaUnavailable::Driver(reason));
        }
        if KERNELS.is_empty() {
            return Err(CudaUnavailable::NoKernels);
        }
        // SAFETY: the driver is there and has shown this device; handles are used only while they live.
        let opened = unsafe {
            let number = result::device::get(ordinal as i32)?;
            let context = result::primary_ctx::retain(number)?;
            result::ctx::set_current(context)?;
            let attribute = |which| result::device::get_attribute(number, which).map(|value| value.max(0) as u32);
            Self {
                device: number,
                context,
                stream: result::stream::create(result::stream::StreamKind::NonBlocking)?,
                modules: Mutex::default(),
                name: device.name.clone(),
                multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                shared_bytes_max: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
                capability: device.compute_capability,
            }
        };
        Ok(Arc::new(opened))
    }

    /// The first device, for a test; `None`, said aloud, if there is none.
    #[cfg(test)]
    pub fn for_tests() -> Option<Arc<Self>> {
        match Self::open(0) {
            Ok(device) => Some(device),
            Err(reason) => {
                println!("skipped: no CUDA device ({reason})");
                None
            }
        }
    }

    /// Its marketing name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// How many blocks can run at least.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Bytes of shared memory that a block may ask for ([`Function::allow_shared`]).
    pub fn shared_bytes_max(&self) -> u32 {
        self.shared_bytes_max
    }

    /// Whether it runs the modules named `…_sm90a`.
    pub fn hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    /// Makes the device's context that of the calling thread.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("context"))
    }

    /// A kernel, by the stem of its file and its name.
    pub fn function(&self, module: &str, name: &str) -> Result<Function> {
        self.bind()?;
        let missing = || CudaError::NoKernel { module: module.into(), name: name.into() };
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match modules.get(module) {
            Some(loaded) => *loaded,
            None => {
                let (stem, image) = KERNELS.iter().find(|(stem, _)| *stem == module).ok_or_else(missing)?;
                // SAFETY: the image is a whole fatbin, made by the build.
                let loaded = Module(
                    unsafe { result::module::load_data(image.as_ptr().cast()) }
                        .map_err(failed("a module cannot be loaded (too old a driver, or another kind of device)"))?,
                );
                modules.insert(stem, loaded);
                loaded
            }
        };
        let c_name = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the module is loaded and never unloaded while the device lives.
        let raw = unsafe { result::module::get_function(loaded.0, c_name) }.map_err(|_| missing())?;
        Ok(Function { raw })
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> Result<usize> {
        self.bind()?;
        result::mem_get_info().map(|(free, _)| free).map_err(failed("free memory"))
    }

    /// Memory, its contents undefined; 256-byte aligned. Of 0 bytes: of 256.
    pub fn alloc(self: &Arc<Self>, bytes: usize) -> Result<DeviceBuffer> {
        let free = self.free_bytes()?;
        // SAFETY: the context is current; the address is freed once, by the buffer.
        match unsafe { result::malloc_sync(bytes.max(256)) } {
            Ok(ptr) => Ok(DeviceBuffer::new(Arc::clone(self), ptr, bytes)),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(CudaError::Memory { bytes, free }),
            Err(error) => Err(failed("memory")(error)),
        }
    }

    /// Memory that holds these values.
    pub fn from_slice<T: Copy>(self: &Arc<Self>, values: &[T]) -> Result<DeviceBuffer> {
        let buffer = self.alloc(size_of_val(values))?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Memory of the host that the device copies from and to while the host goes on; zeroed.
    pub fn pinned<T: Copy>(self: &Arc<Self>, count: usize) -> Result<Pinned<T>> {
        self.bind()?;
        let bytes = (count * size_of::<T>()).max(64);
        // SAFETY: the context is current; freed once, by the owner; zeroed before anyone sees it.
        let ptr = unsafe {
            let ptr = result::malloc_host(bytes, 0).map_err(failed("pinned memory"))?;
            ptr.cast::<u8>().write_bytes(0, bytes);
            ptr.cast::<T>()
        };
        Ok(Pinned::new(Arc::clone(self), ptr, count))
    }

    /// Copies from pinned memory, after what was launched before. The host must not write there until
    /// [`Device::synchronize`], or an event after it.
    pub fn upload<T: Copy>(&self, from: &Pinned<T>, count: usize, to: DevicePtr) -> Result<()> {
        // SAFETY: pinned memory of at least `count` values; `to` was given out by this device for as many.
        unsafe { result::memcpy_htod_async(to, &from.as_slice()[..count], self.stream) }.map_err(failed("upload"))
    }

    /// The same, of some of the values.
    pub fn upload_from<T: Copy>(&self, from: &Pinned<T>, range: Range<usize>, to: DevicePtr) -> Result<()> {
        // SAFETY: as above, of this range.
        unsafe { result::memcpy_htod_async(to, &from.as_slice()[range], self.stream) }.map_err(failed("upload"))
    }

    /// Copies to pinned memory, after what was launched before; there once an event after it has come.
    pub fn download<T: Copy>(&self, from: DevicePtr, to: &mut Pinned<T>, count: usize) -> Result<()> {
        // SAFETY: as `upload`, the other way.
        unsafe { result::memcpy_dtoh_async(&mut to.as_mut_slice()[..count], from, self.stream) }
            .map_err(failed("download"))
    }

    /// Waits for everything that was launched.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("a kernel failed"))
    }

    /// An event, to be recorded and waited for.
    pub fn event(self: &Arc<Self>, timed: bool) -> Result<Event> {
        self.bind()?;
        let flags =
            if timed { sys::CUevent_flags::CU_EVENT_DEFAULT } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING };
        let raw = result::event::create(flags).map_err(failed("event"))?;
        Ok(Event { device: Arc::clone(self), raw })
    }

    /// Records what `body` launches as a graph.
    pub fn capture(self: &Arc<Self>, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives; a capture begun is ended whatever the body does; handles are freed once.
        unsafe {
            result::stream::begin_capture(self.stream, mode).map_err(failed("begin of a graph"))?;
            let done = body();
            let graph = result::stream::end_capture(self.stream).map_err(failed("end of a graph"));
            done?;
            let graph = graph?;
            let mut exec = std::mem::MaybeUninit::uninit();
            let made = sys::cuGraphInstantiateWithFlags(exec.as_mut_ptr(), graph, 0).result();
            result::graph::destroy(graph).map_err(failed("graph"))?;
            made.map_err(failed("a graph cannot be made"))?;
            Ok(Graph { device: Arc::clone(self), exec: exec.assume_init() })
        }
    }

    /// Median seconds of `runs` times of what `body` launches, by the device's clock.
    #[cfg(test)]
    pub fn time(self: &Arc<Self>, runs: usize, mut body: impl FnMut() -> Result<()>) -> Result<f64> {
        let (begun, ended) = (self.event(true)?, self.event(true)?);
        let mut seconds = Vec::with_capacity(runs);
        for _ in 0..runs.max(1) {
            begun.record()?;
            body()?;
            ended.record()?;
            ended.wait()?;
            seconds.push(begun.seconds_until(&ended)?);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: nothing that was made of the device is left: everything holds it.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// A point in the stream.
#[derive(Debug)]
pub(crate) struct Event {
    device: Arc<Device>,
    raw: sys::CUevent,
}

// SAFETY: as `Device`.
unsafe impl Send for Event {}

impl Event {
    /// Comes when all that was launched so far is complete.
    pub fn record(&self) -> Result<()> {
        // SAFETY: event and stream live.
        unsafe { result::event::record(self.raw, self.device.stream) }.map_err(failed("event"))
    }

    /// Until it has come.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.raw) }.map_err(failed("a kernel failed"))
    }

    /// Between two timed events that have come.
    pub fn seconds_until(&self, later: &Self) -> Result<f64> {
        // SAFETY: both events live.
        let milliseconds = unsafe { result::event::elapsed(self.raw, later.raw) }.map_err(failed("time"))?;
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by the driver, destroyed once.
        let _ = unsafe { result::event::destroy(self.raw) };
    }
}

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    raw: sys::CUfunction,
}

// SAFETY: as `Device`; a function lives as long as its module.
unsafe impl Send for Function {}

impl Function {
    /// Lets its blocks have so many bytes of dynamic shared memory; needed beyond 48 KiB.
    pub fn allow_shared(&self, bytes: u32) -> Result<()> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function lives.
        unsafe { result::function::set_function_attribute(self.raw, attribute, bytes as i32) }
            .map_err(failed("shared memory of a kernel"))
    }

    /// No kernel of a device: the one of this number under the emulator.
    #[cfg(test)]
    pub fn emulated(number: usize) -> Self {
        Self { raw: number as sys::CUfunction }
    }
}

/// A kernel with its geometry and arguments: launched once, or many times, or captured in a graph.
///
/// It may begin before the kernel launched before it has ended (programmatic dependent launch): every kernel waits by
/// itself, `pdl_wait` in `common.cuh`, before it touches what others write.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    function: Function,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    cluster: u32,
    /// The parameter structure, in words of 8 bytes.
    params: Vec<u64>,
}

impl Launch {
    /// `params` is the kernel's only parameter, laid out as in the kernel's file (`#[repr(C)]`).
    pub fn new<P: Copy>(function: &Function, grid: [u32; 3], block: u32, shared: u32, params: P) -> Self {
        let mut words = vec![0u64; size_of::<P>().div_ceil(8)];
        // SAFETY: `words` has room for a P, whose bytes are copied as they are; P holds plain numbers.
        unsafe { words.as_mut_ptr().cast::<P>().write_unaligned(params) };
        Self { function: *function, grid, block, shared, cluster: 1, params: words }
    }

    /// Blocks of a cluster, along the grid's first dimension.
    pub fn cluster(mut self, blocks: u32) -> Self {
        self.cluster = blocks;
        self
    }

    /// Hands a launch of a [`Function::emulated`] to `run`: number, grid, threads of a block, words of the parameters.
    #[cfg(test)]
    pub fn emulate(&self, run: impl FnOnce(usize, [u32; 3], u32, &u64)) {
        run(self.function.raw as usize, self.grid, self.block, &self.params[0]);
    }

    /// Launches it on the device's stream; the device must be bound ([`Device::bind`]) to this thread.
    pub fn run(&self, device: &Device) -> Result<()> {
        use sys::CUlaunchAttributeID as Id;
        if self.grid.contains(&0) {
            return Ok(());
        }
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let zero = sys::CUlaunchAttributeValue { pad: [0; 64] };
        let (mut overlap, mut shape) = (zero, zero);
        overlap.programmaticStreamSerializationAllowed = 1;
        shape.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: self.cluster, y: 1, z: 1 };
        let mut attributes = [
            attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, overlap),
            attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, shape),
        ];
        let overlaps = device.capability >= (9, 0);
        let (first, count) = match (overlaps, self.cluster > 1) {
            (true, true) => (0, 2),
            (true, false) => (0, 1),
            (false, true) => (1, 1),
            (false, false) => (0, 0),
        };
        let [x, y, z] = self.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: self.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: device.stream,
            attrs: attributes[first..].as_mut_ptr(),
            numAttrs: count,
        };
        let mut arguments = [self.params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: function, stream and the one argument live; the argument is as long as the kernel's parameter, which the
        // host module of the kernel mirrors. The driver copies it before it returns.
        unsafe { sys::cuLaunchKernelEx(&config, self.function.raw, arguments.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(failed("a kernel cannot be launched"))
    }
}

/// Recorded launches, submitted at once.
#[derive(Debug)]
pub(crate) struct Graph {
    device: Arc<Device>,
    exec: sys::CUgraphExec,
}

// SAFETY: as `Device`; used by one thread at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Submits it.
    pub fn launch(&self) -> Result<()> {
        // SAFETY: graph and stream live.
        unsafe { result::graph::launch(self.exec, self.device.stream) }.map_err(failed("a graph cannot be launched"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by the driver, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}
