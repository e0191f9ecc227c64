//! RoPE as `config.json` asks for it: which frequencies turn a head, and how far they reach.
//!
//! All variants are computed in f64 by the functions of `protocol::exact_math` and rounded to f32 once, so that they are
//! the same on every machine; `docs/numerics.md`, rule 5, has their formulas. Sources: Su et al., "RoFormer" (2021); Peng
//! et al., "YaRN" (2023); Ding et al., "LongRoPE" (2024); the Llama 3.1 model card; the names are those of `transformers`.

use std::f64::consts::PI;

use polylink_kernels::{RopeGrowth, RopeSpec};
use polylink_protocol::exact_math::{exp_f64, ln_f64};
use serde_json::{Map, Value};

use super::config::{SIZE_MAX, flag, positive, refuse_unless, set, size_or, wrong};
use super::error::ModelError;

/// What the variants need to know of the model.
pub(super) struct Shape {
    pub head_dim: usize,
    /// `partial_rotary_factor` is known.
    pub partial: bool,
    /// LongRoPE is also called `su` and `yarn`.
    pub long_by_other_names: bool,
    /// Base where none is named.
    pub theta: f64,
    /// `max_position_embeddings`.
    pub positions: usize,
}

/// A table, and the positions that it is meant for.
pub(super) struct Rope {
    pub spec: RopeSpec,
    pub reach: usize,
    /// Sequences of more tokens are turned by the table's long set.
    pub long_beyond: Option<usize>,
}

/// The object that describes RoPE, under its old or its new name; what is there and no object is refused by [`parse`].
pub(super) fn parameters(config: &Value) -> &Value {
    let old = &config["rope_scaling"];
    let absent = old.is_null() || old.as_object().is_some_and(Map::is_empty);
    if absent { &config["rope_parameters"] } else { old }
}

/// A positive number that must be there.
fn number(parameters: &Value, field: &str) -> Result<f64, ModelError> {
    let missing = || wrong(&format!("rope_scaling.{field}"), "RoPE of this kind needs it");
    positive(parameters, field)?.ok_or_else(missing)
}

/// One table.
pub(super) fn parse(config: &Value, parameters: &Value, shape: &Shape) -> Result<Rope, ModelError> {
    if !parameters.is_null() && !parameters.is_object() {
        return Err(wrong("rope_scaling", &format!("an object is expected, {parameters} was found")));
    }
    let kind = if set(parameters, "rope_type") { &parameters["rope_type"] } else { &parameters["type"] };
    let kind = match kind {
        Value::Null => "default",
        kind => kind.as_str().ok_or_else(|| wrong("rope_type", "a text is expected"))?,
    };
    let kind = if shape.long_by_other_names && matches!(kind, "su" | "yarn") { "longrope" } else { kind };
    let either = |field| Ok::<_, ModelError>(positive(parameters, field)?.or(positive(config, field)?));
    let theta = either("rope_theta")?.unwrap_or(shape.theta);
    if theta <= 1.0 {
        return Err(wrong("rope_theta", "a number above 1 is expected"));
    }
    let turned = turned(config, parameters, shape)?;
    let original = if set(config, "original_max_position_embeddings") { config } else { parameters };
    let original = size_or(original, "original_max_position_embeddings", shape.positions)?;
    let base = Base { theta, turned };
    let fixed = |frequencies: Vec<f64>, scale: f64| RopeSpec {
        frequencies: frequencies.into_iter().map(|frequency| frequency as f32).collect(),
        scale: scale as f32,
        growth: None,
        long: None,
    };
    // The saturating cast keeps an absurd factor a number.
    let stretched = |positions: usize, factor: f64| ((positions as f64 * factor) as usize).min(SIZE_MAX as usize);
    let mut long_beyond = None;
    let (spec, reach) = match kind {
        "default" => (fixed(base.frequencies().collect(), 1.0), shape.positions),
        "linear" => {
            let factor = number(parameters, "factor")?;
            (fixed(base.frequencies().map(|frequency| frequency / factor).collect(), 1.0), shape.positions)
        }
        "dynamic" => {
            let factor = number(parameters, "factor")?;
            if factor < 1.0 || turned < 4 {
                return Err(wrong("factor", "dynamic RoPE needs at least 1, and two pairs"));
            }
            let growth = RopeGrowth { base: theta, factor, trained: shape.positions };
            let spec = RopeSpec { growth: Some(growth), ..fixed(base.frequencies().collect(), 1.0) };
            (spec, stretched(shape.positions, factor))
        }
        "yarn" => {
            let (frequencies, scale) = base.yarn(parameters, original)?;
            // Some name the length that it was trained for, some the stretched one.
            let factor = number(parameters, "factor")?;
            (fixed(frequencies, scale), shape.positions.max(stretched(original, factor)))
        }
        "llama3" => (fixed(base.llama3(parameters, original)?, 1.0), shape.positions),
        "longrope" => {
            let scale = long_scale(parameters, shape.positions, original)?;
            let [short, long] = ["short_factor", "long_factor"].map(|field| base.divided(parameters, field));
            let (short, long) = (fixed(short?, scale), fixed(long?, scale));
            long_beyond = (original < shape.positions).then_some(original);
            (RopeSpec { long: long_beyond.map(|_| long.frequencies), ..short }, shape.positions)
        }
        kind => {
            let known = "default, linear, dynamic, yarn, llama3 and longrope are built";
            return Err(wrong("rope_scaling", &format!("{known}, {kind} was found")));
        }
    };
    Ok(Rope { spec, reach, long_beyond })
}

/// How many values of a head are turned.
fn turned(config: &Value, parameters: &Value, shape: &Shape) -> Result<usize, ModelError> {
    let field = "partial_rotary_factor";
    let holder = if set(parameters, field) { parameters } else { config };
    if !shape.partial {
        refuse_unless(holder, field, "this architecture is built without it", |value| value.as_f64() == Some(1.0))?;
        return Ok(shape.head_dim);
    }
    let turned = (shape.head_dim as f64 * positive(holder, field)?.unwrap_or(1.0)) as usize;
    if turned < 2 || turned > shape.head_dim || !turned.is_multiple_of(2) {
        return Err(wrong(field, &format!("{turned} values of {} cannot be turned in pairs", shape.head_dim)));
    }
    Ok(turned)
}

/// Plain RoPE.
struct Base {
    theta: f64,
    turned: usize,
}

impl Base {
    /// `theta^(−2i ÷ turned)`.
    fn frequencies(&self) -> impl Iterator<Item = f64> {
        let (log, turned) = (ln_f64(self.theta), self.turned as f64);
        (0..self.turned / 2).map(move |i| exp_f64(-((2 * i) as f64 / turned) * log))
    }

    /// Frequencies that turn often stay, those that turn seldom are divided by the factor, a ramp lies between.
    fn yarn(&self, parameters: &Value, original: usize) -> Result<(Vec<f64>, f64), ModelError> {
        let factor = number(parameters, "factor")?;
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * ln_f64(factor) + 1.0 };
        let scale = match (positive(parameters, "attention_factor")?, named_scales(parameters)?) {
            (Some(scale), _) => scale,
            (None, Some((one, all))) => magnitude(one) / magnitude(all),
            (None, None) => magnitude(1.0),
        };
        let fast = positive(parameters, "beta_fast")?.unwrap_or(32.0);
        let slow = positive(parameters, "beta_slow")?.unwrap_or(1.0);
        let pair =
            |turns: f64| self.turned as f64 * ln_f64(original as f64 / (turns * 2.0 * PI)) / (2.0 * ln_f64(self.theta));
        let (mut low, mut high) = (pair(fast), pair(slow));
        if flag(parameters, "truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(self.turned as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let frequencies = self.frequencies().enumerate().map(|(i, frequency)| {
            let kept = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / factor * (1.0 - kept) + frequency * kept
        });
        Ok((frequencies.collect(), scale))
    }

    /// As YaRN's by wavelengths, without a scale.
    fn llama3(&self, parameters: &Value, original: usize) -> Result<Vec<f64>, ModelError> {
        let factor = number(parameters, "factor")?;
        let (low, high) = (number(parameters, "low_freq_factor")?, number(parameters, "high_freq_factor")?);
        if high <= low {
            return Err(wrong("high_freq_factor", "more than low_freq_factor is expected"));
        }
        let original = original as f64;
        let frequencies = self.frequencies().map(|frequency| {
            let wavelength = 2.0 * PI / frequency;
            if wavelength < original / high {
                frequency
            } else if wavelength > original / low {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        });
        Ok(frequencies.collect())
    }

    /// LongRoPE: every frequency divided by a factor of its own.
    fn divided(&self, parameters: &Value, field: &str) -> Result<Vec<f64>, ModelError> {
        let factors = parameters[field].as_array().map(|factors| factors.iter().filter_map(Value::as_f64));
        let factors: Vec<f64> = factors.into_iter().flatten().filter(|factor| *factor > 0.0).collect();
        if factors.len() != self.turned / 2 {
            return Err(wrong(field, &format!("{} positive numbers are expected", self.turned / 2)));
        }
        Ok(self.frequencies().zip(factors).map(|(frequency, factor)| frequency / factor).collect())
    }
}

/// LongRoPE's scale, by how far the context was extended.
fn long_scale(parameters: &Value, positions: usize, original: usize) -> Result<f64, ModelError> {
    let factor = positive(parameters, "factor")?.unwrap_or(positions as f64 / original as f64);
    Ok(match positive(parameters, "attention_factor")? {
        Some(scale) => scale,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + ln_f64(factor) / ln_f64(original as f64)).sqrt(),
    })
}

/// `mscale` and `mscale_all_dim`, if both are there and not 0.
fn named_scales(parameters: &Value) -> Result<Option<(f64, f64)>, ModelError> {
    let there = |field: &str| parameters[field].as_f64().is_some_and(|scale| scale != 0.0);
    if !there("mscale") || !there("mscale_all_dim") {
        return Ok(None);
    }
    Ok(Some((number(parameters, "mscale")?, number(parameters, "mscale_all_dim")?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use polylink_protocol::exact_math::rope_frequencies;
    use serde_json::json;

    fn parsed(parameters: Value) -> Result<Rope, ModelError> {
        let shape = Shape { head_dim: 32, partial: true, long_by_other_names: false, theta: 10_000.0, positions: 4096 };
        parse(&json!({}), &parameters, &shape)
    }

    #[test]
    fn plain_frequencies_are_those_of_exact_math() {
        let rope = parsed(Value::Null).unwrap();
        assert_eq!((rope.spec.frequencies, rope.reach), (rope_frequencies(10_000.0, 32), 4096));
        let half = parsed(json!({"rope_theta": 500.0, "partial_rotary_factor": 0.5})).unwrap();
        assert_eq!(half.spec.frequencies, rope_frequencies(500.0, 16));
    }

    #[test]
    fn scaled_ones_keep_the_fast_pairs_and_slow_down_the_slow_ones() {
        let plain = rope_frequencies(10_000.0, 32);
        for (name, parameters) in [
            ("yarn", json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024})),
            (
                "llama3",
                json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 1024}),
            ),
        ] {
            let spec = parsed(parameters).unwrap().spec;
            assert_eq!(spec.frequencies[0], plain[0], "{name}");
            assert_eq!(spec.frequencies[15], plain[15] / 4.0, "{name}");
            let between = spec.frequencies.iter().zip(&plain).filter(|(f, p)| *f < *p && **f * 4.0 > **p).count();
            assert!(between > 0, "{name} has a ramp");
            assert_eq!(spec.scale > 1.0, name == "yarn");
        }
        let linear = parsed(json!({"type": "linear", "factor": 2.0})).unwrap().spec;
        assert_eq!(linear.frequencies[3], plain[3] / 2.0);
    }

    #[test]
    fn growing_ones_begin_where_the_trained_length_ends() {
        let rope = parsed(json!({"type": "dynamic", "factor": 4.0})).unwrap();
        assert_eq!(rope.reach, 16_384);
        assert_eq!(parsed(json!({"type": "dynamic", "factor": 1e29})).unwrap().reach, 1 << 24, "absurd, and a number");
        let growth = rope.spec.growth.unwrap();
        assert_eq!(growth.frequencies(4095, 16), rope.spec.frequencies, "the last one within");
        let far = growth.frequencies(16_383, 16);
        let stretched = 10_000.0 * 13f64.powf(32.0 / 30.0);
        assert!((f64::from(far[15]) / stretched.powf(-30.0 / 32.0) - 1.0).abs() < 1e-6);
    }

    /// Some files name the length that YaRN stretches to, and some (as Qwen's pages say it is switched on) only the trained one.
    #[test]
    fn yarn_reaches_as_far_as_it_stretches() {
        let reach = |original: usize, factor: f64| {
            let parameters = json!({"type": "yarn", "factor": factor, "original_max_position_embeddings": original});
            parsed(parameters).unwrap().reach
        };
        assert_eq!((reach(1024, 4.0), reach(4096, 4.0), reach(512, 2.0)), (4096, 16_384, 4096));
    }

    #[test]
    fn what_is_not_built_or_not_complete_is_named() {
        for (parameters, expected) in [
            (json!({"type": "mrope"}), "mrope"),
            (json!({"type": "linear"}), "factor"),
            (json!({"type": "yarn", "factor": -1.0}), "factor"),
            (json!({"type": "longrope", "short_factor": [1.0]}), "short_factor: 16 positive numbers"),
            (json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor"),
            (json!({"rope_theta": 0.5}), "rope_theta"),
            (json!([1]), "an object"),
        ] {
            let error = parsed(parameters).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        }
    }
}
