//! Starting an engine: from a model and settings to a backend with its program, and the thread around it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use polylink_kernels::{
    Backend, BackendError, CpuBackend, CpuOptions, KvLayout, KvSpec, Limits, ReferenceBackend, Solo,
};

use super::config::{BackendKind, EngineConfig, EngineError, EngineInfo, KvCacheSize, Speculation, tokens_held};
use super::core::Core;
use super::draft_model::DraftModel;
use super::handle::{EngineHandle, Shared};
use super::speculate::Drafter;
use super::thread::{EngineThread, Rebuild};
use crate::model::{LoadedModel, Precision, SplitPlan};
use crate::tensor_split;

/// Rows of one step whose logits may be wanted beyond one of each running choice.
const EXTRA_WANTED: usize = 32;

/// Blocks of a cache that takes what is free: more would only cost the pool memory.
const BLOCKS_MAX: usize = 1 << 20;

/// Where engines come from.
pub struct Engine;

impl Engine {
    /// Loads the weights, allocates everything, connects the peers of a split, and starts the engine's thread.
    ///
    /// Takes as long as loading takes: call it from a thread that may block.
    ///
    /// # Errors
    /// Why it cannot serve: settings, model, memory, peers.
    pub fn start(model: LoadedModel, config: EngineConfig) -> Result<EngineHandle, EngineError> {
        Self::start_over(model, config, |backend| backend)
    }

    /// As [`Engine::start`], over what `wrap` makes of the backend, each time that one is built: a wrapper that counts,
    /// shows or breaks what passes through.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_over(
        model: LoadedModel,
        config: EngineConfig,
        mut wrap: impl FnMut(Box<dyn Backend>) -> Box<dyn Backend> + Send + 'static,
    ) -> Result<EngineHandle, EngineError> {
        let config = checked(config, &model)?;
        let built = build(&model, &config)?;
        let drafter = drafter(&model, &config, &built.info)?;
        tracing::info!(
            backend = built.info.backend,
            kv_blocks = built.info.kv_blocks,
            context_length = built.info.context_length,
            "engine ready"
        );
        let vocabulary = model.config().vocab_size;
        let commands_max = built.info.max_running + built.info.max_waiting + 2;
        let shared = Arc::new(Shared::new(built.info, &model));
        let core = Core::new(Arc::clone(&shared), &built.limits, vocabulary, &config, drafter);
        let (sender, commands) = sync_channel(commands_max);
        let backend = wrap(built.backend);
        let rebuild: Rebuild = Box::new(move || build(&model, &config).map(|built| wrap(built.backend)));
        let thread = EngineThread::new(core, backend, commands, Arc::clone(&shared), rebuild);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || thread.run())?;
        Ok(EngineHandle::new(shared, sender, thread))
    }
}

/// Refuses settings out of their domains, and cuts those that depend on each other.
fn checked(mut config: EngineConfig, model: &LoadedModel) -> Result<EngineConfig, EngineError> {
    let wrong = |field, reason: String| Err(EngineError::Config { field, reason });
    if !(1..=65_536).contains(&config.token_budget) {
        return wrong("token_budget", "1 to 65,536 rows per step are expected".into());
    }
    if !(1..=4_096).contains(&config.max_running) {
        return wrong("max_running", "1 to 4,096 choices are expected".into());
    }
    if config.max_waiting > 131_072 {
        return wrong("max_waiting", "at most 131,072 choices may wait".into());
    }
    if config.threads > 1_024 {
        return wrong("threads", "0 (one per core) to 1,024 are expected".into());
    }
    let context_max = model.context_length();
    let context = config.context_length.unwrap_or(context_max);
    if !(2..=context_max).contains(&context) {
        return wrong("context_length", format!("2 to {context_max} tokens (the model's context) are expected"));
    }
    config.context_length = Some(context);
    config.backend = settled(&config, model)?;
    config.max_running = config.max_running.min(config.token_budget);
    if let Some(split) = &config.split
        && (split.shares.len() != split.peers.len() + 1 || split.peers.is_empty())
    {
        return wrong(
            "split",
            "one proportion for this process and one per peer are expected, such as 2:1 and one peer".into(),
        );
    }
    Ok(config)
}

/// A backend without weights.
pub(crate) fn empty_backend(kind: BackendKind, threads: usize) -> Result<Box<dyn Backend>, EngineError> {
    Ok(match kind {
        BackendKind::Cpu | BackendKind::Auto => {
            Box::new(CpuBackend::new(CpuOptions { threads: NonZeroUsize::new(threads), ..CpuOptions::default() })?)
        }
        BackendKind::Reference => Box::new(ReferenceBackend::new()),
        BackendKind::Cuda => cuda_backend()?,
    })
}

#[cfg(feature = "cuda")]
fn cuda_backend() -> Result<Box<dyn Backend>, EngineError> {
    let backend = polylink_kernels::CudaBackend::open(0);
    Ok(Box::new(backend.map_err(|reason| BackendError::Unavailable(reason.to_string()))?))
}

#[cfg(not(feature = "cuda"))]
fn cuda_backend() -> Result<Box<dyn Backend>, EngineError> {
    Err(BackendError::Unavailable("this program was built without CUDA (build it by `make cuda`)".into()).into())
}

/// A GPU or the CPU, where that is left open; and a refusal of what would not be what the profile says.
fn settled(config: &EngineConfig, model: &LoadedModel) -> Result<BackendKind, EngineError> {
    let kind = config.backend;
    let precision = model.precision();
    let of_a_cpu = matches!(precision, Precision::Bf16 | Precision::AmxBf16);
    let of_a_gpu = precision == Precision::TensorBf16;
    let missing = match kind {
        BackendKind::Auto if config.split.is_some() => Some("a split is computed by CPUs".to_owned()),
        BackendKind::Auto if of_a_cpu => Some(format!("{} is a CPU's", precision.numerics())),
        BackendKind::Auto => cuda_backend().err().map(|reason| reason.to_string()),
        _ => None,
    };
    let kind = match (kind, missing) {
        (BackendKind::Auto, None) => BackendKind::Cuda,
        (BackendKind::Auto, Some(reason)) => {
            tracing::warn!(reason, "no GPU is used: the CPU computes");
            BackendKind::Cpu
        }
        (kind, _) => kind,
    };
    if of_a_gpu && kind != BackendKind::Cuda {
        let reason =
            format!("{} is computed by a GPU, and none is used here: choose bf16 or f32", precision.numerics());
        return Err(EngineError::Config { field: "dtype", reason });
    }
    Ok(kind)
}

/// KV cache shape of one rank.
pub(crate) fn kv_spec(model: &LoadedModel, split: &SplitPlan, rank: usize) -> KvSpec {
    let shard = &split.shards[rank];
    let dtype = model.kv_dtype();
    KvSpec { dtype, ..KvSpec::f32(shard.layers.len(), shard.kv_heads.len(), model.config().head_dim) }
}

/// A backend that is ready to compute.
pub(super) struct Built {
    pub(super) backend: Box<dyn Backend>,
    pub(super) info: EngineInfo,
    pub(super) limits: Limits,
}

pub(super) fn build(model: &LoadedModel, config: &EngineConfig) -> Result<Built, EngineError> {
    let split = match &config.split {
        Some(split) => SplitPlan::new(model.config(), &split.shares)?,
        None => SplitPlan::whole(model.config()),
    };
    let mut backend = empty_backend(config.backend, config.threads)?;
    let layout = backend.kv_layout(&kv_spec(model, &split, 0));
    let positions = config.context_length.unwrap_or(model.context_length());
    let mut limits = Limits {
        rows: config.token_budget,
        // A step has a row for every running choice, and guesses and prompts that are scored in what is left.
        wanted_rows: (config.max_running + EXTRA_WANTED).min(config.token_budget),
        slots: config.max_running,
        kv_blocks: 1,
        positions,
    };
    let name = backend.name().to_owned();
    let backend = match &config.split {
        Some(settings) => {
            limits.kv_blocks = kv_blocks(config.kv_cache, layout, None)?;
            limits.positions = positions.min(tokens_held(limits.kv_blocks, layout.block_tokens));
            tensor_split::lead(model, &split, settings, limits, layout.block_tokens, backend)?
        }
        None => {
            let program = model.load(&split, 0, &mut *backend)?;
            limits.kv_blocks = kv_blocks(config.kv_cache, layout, backend.cache_room(&program, &limits))?;
            limits.positions = positions.min(tokens_held(limits.kv_blocks, layout.block_tokens));
            backend.build(program, limits, Box::new(Solo))?;
            backend
        }
    };
    if limits.positions < positions {
        let (context, cached) = (positions, limits.positions - 1);
        tracing::warn!(
            context,
            cached,
            "the KV cache holds fewer tokens than the model's context: longer requests are refused"
        );
    }
    let info = EngineInfo {
        context_length: positions,
        long_beyond: model.config().long_beyond,
        block_tokens: layout.block_tokens,
        kv_blocks: limits.kv_blocks,
        max_running: config.max_running,
        max_waiting: config.max_waiting,
        token_budget: config.token_budget,
        backend: name,
    };
    Ok(Built { backend, info, limits })
}

/// What guesses tokens ahead, if anything does.
pub(super) fn drafter(
    model: &LoadedModel,
    config: &EngineConfig,
    info: &EngineInfo,
) -> Result<Option<Drafter>, EngineError> {
    let draft = match &config.speculation {
        Speculation::Off => return Ok(None),
        Speculation::Lookup => return Ok(Some(Drafter::Lookup)),
        Speculation::Draft(draft) => draft,
    };
    let (own, vocabulary) = (draft.config().vocab_size, model.config().vocab_size);
    if own != vocabulary {
        let reason =
            format!("the draft model has a vocabulary of {own}, the model one of {vocabulary}: they must be equal");
        return Err(EngineError::Config { field: "speculation", reason });
    }
    let split = SplitPlan::whole(draft.config());
    let mut backend = empty_backend(config.backend, config.threads)?;
    let KvLayout { block_tokens, .. } = backend.kv_layout(&kv_spec(draft, &split, 0));
    let limits = Limits {
        rows: config.token_budget,
        wanted_rows: config.max_running,
        slots: config.max_running,
        // As many positions as the model's own cache has.
        kv_blocks: (info.kv_blocks * info.block_tokens).div_ceil(block_tokens),
        positions: draft.context_length().min(info.context_length).min(info.tokens_held()),
    };
    let program = draft.load(&split, 0, &mut *backend)?;
    backend.build(program, limits, Box::new(Solo))?;
    Ok(Some(Drafter::Model(Box::new(DraftModel::new(backend, limits, block_tokens, vocabulary)))))
}

fn kv_blocks(size: KvCacheSize, layout: KvLayout, room: Option<usize>) -> Result<usize, EngineError> {
    let of = |bytes: usize| bytes / layout.bytes_per_block.max(1);
    let blocks = match size {
        KvCacheSize::Blocks(blocks) => blocks,
        KvCacheSize::Bytes(bytes) => of(bytes),
        KvCacheSize::Free => of(room.unwrap_or(KvCacheSize::CPU_BYTES)).min(BLOCKS_MAX),
    };
    if !(1..u32::MAX as usize / layout.block_tokens.max(1)).contains(&blocks) {
        let reason =
            format!("it must hold at least one block of {} bytes, and fewer than 2³² tokens", layout.bytes_per_block);
        return Err(EngineError::Config { field: "kv_cache", reason });
    }
    Ok(blocks)
}
