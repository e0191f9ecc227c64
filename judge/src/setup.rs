//! From folders and settings to a working auditor.

use std::path::PathBuf;

use polylink_inference_server::model::{Computation, LoadedModel};
use polylink_protocol::market;

use crate::cross_encoder::CrossEncoder;
use crate::evaluate::Held;
use crate::evidence::Numerics;
use crate::llm::{Endpoint, LlmJudge, Rubric};
use crate::replay::LocalReplay;
use crate::{Auditor, JudgeError};

/// A profile that the judge holds: the declared model's folder.
#[derive(Clone, Debug)]
pub struct HeldModel {
    /// Hugging Face folder.
    pub folder: PathBuf,
    /// As the profile declares.
    pub computation: Computation,
    /// `org/name@revision`, as the profile declares.
    pub id: String,
}

/// What an auditor is made of.
#[derive(Clone, Debug)]
pub struct AuditorConfig {
    /// Profiles to replay.
    pub models: Vec<HeldModel>,
    /// Folder of the cross-encoder.
    pub cross_encoder: PathBuf,
    /// `judge_prompt.json`.
    pub rubric: PathBuf,
    /// The language-model judge; none: the cross-encoder alone.
    pub endpoint: Option<Endpoint>,
    /// Share of answers that it sees in any case, in basis points.
    pub llm_fraction_bps: u32,
    /// Compute threads of a replay; 0: one per core.
    pub threads: usize,
}

impl Auditor {
    /// Loads everything; what is missing or damaged is named.
    pub fn open(config: &AuditorConfig) -> Result<Self, JudgeError> {
        let held = config.models.iter().map(|model| hold(model, config.threads)).collect::<Result<_, _>>()?;
        let llm = match &config.endpoint {
            None => None,
            Some(endpoint) => {
                let judge = LlmJudge::new(Rubric::open(&config.rubric)?, endpoint.clone());
                Some(judge.map_err(|e| JudgeError::Folder { path: config.rubric.clone(), reason: e.to_string() })?)
            }
        };
        let cross_encoder = CrossEncoder::open(&config.cross_encoder)?;
        Self::start(cross_encoder, held, llm, config.llm_fraction_bps)
    }
}

fn hold(model: &HeldModel, threads: usize) -> Result<Held, JudgeError> {
    let wrong = |reason: String| JudgeError::Folder { path: model.folder.clone(), reason };
    let loaded = LoadedModel::open(&model.folder, model.computation).map_err(|e| wrong(e.to_string()))?;
    let profile = loaded.profile(&model.id).map_err(|e| wrong(e.to_string()))?;
    market::check_profile(&profile).map_err(|e| wrong(e.to_string()))?;
    Ok(Held {
        profile: market::profile_digest(&profile),
        numerics: Numerics::of(&profile.compute_dtype),
        tokenizer: loaded.tokenizer().clone(),
        end_tokens: loaded.end_tokens().to_vec(),
        context_length: loaded.context_length(),
        replay: Box::new(LocalReplay::open(&loaded, threads)?),
    })
}
