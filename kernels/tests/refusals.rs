//! Wrong weights, programs and steps are refused with a reason, and leave the backend usable.

#![allow(clippy::unwrap_used)] // tests

mod common;

use common::*;
use polylink_kernels::*;

const KV: KvSpec = KvSpec::f32(TINY.layers, TINY.kv_heads, TINY.head_dim);

fn backend() -> CpuBackend {
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let split = Split::whole(&TINY);
    build(&mut backend, &TINY, Dtype::F32, WeightForm::Float, &split, limits(), Box::new(Solo)).unwrap();
    backend
}

fn reason<T>(result: Result<T, BackendError>) -> String {
    match result {
        Ok(_) => panic!("was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn tensors() {
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let good = Tensor::random("layer.q", 1, &[64, 96], Dtype::F32, 1.0, 0.0);
    let mut prepare = |tensor: &Tensor, shard: Shard, ranges, form| {
        reason(backend.prepare(&[Part { tensor: tensor.view(), shard }], ranges, form))
    };
    let whole = || Shard::whole(&[64, 96]);
    let mut short = Tensor {
        name: "short".into(),
        data: good.data[..100].to_vec(),
        ..Tensor::random("", 1, &[64, 96], Dtype::F32, 1.0, 0.0)
    };
    let text = prepare(&short, whole(), KRanges::whole(96), WeightForm::Float);
    assert!(text.contains("tensor short") && text.contains("100 bytes"), "{text}");
    short.data = good.data.clone();
    short.data[4 * (2 * 96 + 5)..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let text = prepare(&short, whole(), KRanges::whole(96), WeightForm::Float);
    assert!(text.contains("element (2, 5) is NaN"), "{text}");
    let text = prepare(&good, Shard::rows(60..65, 96), KRanges::whole(96), WeightForm::Float);
    assert!(text.contains("outside"), "{text}");
    let text = prepare(&good, Shard::columns(64, 0..40), KRanges::kv_groups(96, 32), WeightForm::Float);
    assert!(text.contains("borders of K ranges of 32"), "{text}");
    let text = prepare(&good, whole(), KRanges::whole(64), WeightForm::Float);
    assert!(text.contains("96 inputs"), "{text}");
    let odd = Tensor::random("odd", 1, &[8, 40], Dtype::F32, 1.0, 0.0);
    let text = prepare(&odd, Shard::whole(&[8, 40]), KRanges::whole(40), WeightForm::Q8_0);
    assert!(text.contains("multiples of 32") && text.contains("f32"), "{text}");
    let text = prepare(&good, whole(), KRanges::whole(96), WeightForm::Vector);
    assert!(text.contains("expected 1 dimension"), "{text}");
}

#[test]
fn programs() {
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let tensor = Tensor::random("w", 1, &[64, 96], Dtype::F32, 1.0, 0.0);
    let part = Part { tensor: tensor.view(), shard: Shard::whole(&[64, 96]) };
    let weight = backend.prepare(&[part], KRanges::whole(96), WeightForm::Float).unwrap();
    let mut build = |widths: (usize, usize), heads: usize| {
        let mut builder = ProgramBuilder::new(KvSpec::f32(1, 2, 32), 64);
        let (input, output) = (builder.wanted_buffer(widths.0), builder.wanted_buffer(widths.1));
        builder.push(Op::Gemm { weight, input, output, epilogue: Epilogue::default() });
        if heads > 0 {
            let qkv = builder.step_buffer((heads + 4) * 32);
            let mixed = builder.step_buffer(heads * 32);
            let (scale, window, soft_cap) = (1.0, None, None);
            let attention = AttentionSpec { query_heads: heads, kv_heads: 2, head_dim: 32, scale, window, soft_cap };
            builder.push(Op::Attention { layer: 0, qkv, output: mixed, attention });
        }
        backend.build(builder.finish(output), limits(), Box::new(Solo))
    };
    build((96, 64), 4).unwrap();
    let text = reason(build((95, 64), 0));
    assert!(text.contains("operation 0") && text.contains("95 wide"), "{text}");
    assert!(reason(build((96, 63), 0)).contains("63 wide"));
    assert!(reason(build((96, 64), 3)).contains("3 query heads"));
    let unbuilt = forward(&mut CpuBackend::new(CpuOptions::default()).unwrap(), &KV, &[]);
    assert!(reason(unbuilt).contains("no program"));
}

#[test]
fn steps() {
    let mut backend = backend();
    let chunk = |slot, first, tokens: &[u32], wanted| Chunk { slot, first, tokens: tokens.to_vec(), wanted };
    let table = [
        (chunk(9, 0, &[1], 1), "slot 9 of 8"),
        (chunk(0, 0, &[199], 1), "token 199 is beyond the vocabulary of 199"),
        (chunk(0, 699, &[1, 2], 1), "ends at position 701"),
        (chunk(0, 0, &[1], 2), "wants 2 of 1"),
        (chunk(0, 0, &[1; 641], 1), "641 rows, the limit is 640"),
    ];
    for (chunk, expected) in table {
        let text = reason(forward(&mut backend, &KV, &[chunk]));
        assert!(text.contains(expected), "{text}");
    }
    let sequence = SequenceRows {
        slot: 0,
        first_position: 0,
        rows: 1,
        wanted: 1,
        blocks: Span::default(),
        noise_key: key(),
        long: false,
    };
    let mut submit = |blocks: &[u32], tokens: &[TokenInput], sequence: SequenceRows| {
        let step = ForwardStep { sequences: &[sequence], tokens, block_tables: blocks, logits_out: false };
        backend.submit(&Step::Forward(step)).map(|_| ())
    };
    let one = Span { start: 0, length: 1 };
    assert!(reason(submit(&[], &[TokenInput::Id(1)], sequence)).contains("0 blocks do not cover"));
    assert!(reason(submit(&[], &[TokenInput::Id(1)], SequenceRows { blocks: one, ..sequence })).contains("outside"));
    assert!(
        reason(submit(&[400], &[TokenInput::Id(1)], SequenceRows { blocks: one, ..sequence }))
            .contains("beyond the 400")
    );
    assert!(
        reason(submit(&[1], &[TokenInput::LastSample(3)], SequenceRows { blocks: one, ..sequence }))
            .contains("no last sample")
    );

    // The backend still works, and samples are checked as well.
    forward(&mut backend, &KV, &[chunk(0, 0, &[1, 2, 3], 1)]).unwrap();
    let row = SampleRow {
        row: 0,
        slot: 0,
        params: SampleParams::greedy(),
        logit_bias: Span::default(),
        suppressed: Span::default(),
        mask: Span::default(),
        logprobs: None,
        given: None,
    };
    let mut sample = |row: SampleRow, masks: &[u32]| {
        let rows = [row];
        let step =
            SampleStep { starts: &[], histories: &[], rows: &rows, logit_bias: &[(500, 0.0)], suppressed: &[], masks };
        let ticket = backend.submit(&Step::Sample(step))?;
        let mut output = StepOutput::default();
        backend.wait(ticket, &mut output).map(|()| output.samples[0].token.token)
    };
    let with = |params: SampleParams| SampleRow { params, ..row };
    assert!(reason(sample(SampleRow { row: 1, ..row }, &[])).contains("logits row 1 of 1"));
    assert!(
        reason(sample(with(SampleParams { temperature: f32::NAN, ..row.params }), &[])).contains("temperature NaN")
    );
    assert!(reason(sample(with(SampleParams { min_p: 2.0, ..row.params }), &[])).contains("min_p 2"));
    assert!(reason(sample(with(SampleParams { presence_penalty: 1.0, ..row.params }), &[])).contains("never started"));
    assert!(reason(sample(SampleRow { logit_bias: one, ..row }, &[])).contains("logit bias beyond"));
    assert!(reason(sample(SampleRow { logprobs: Some(21), ..row }, &[])).contains("at most 20"));
    assert!(
        reason(sample(SampleRow { given: Some(199), ..row }, &[]))
            .contains("given token is beyond the vocabulary of 199")
    );
    let mask = Span { start: 0, length: 7 };
    assert!(reason(sample(SampleRow { mask, ..row }, &[0; 7])).contains("every token"));
    assert!(reason(sample(SampleRow { mask: Span { start: 0, length: 6 }, ..row }, &[0; 7])).contains("6 words"));
    let free = sample(row, &[]).unwrap();
    assert_eq!(sample(SampleRow { mask, ..row }, &[u32::MAX; 7]).unwrap(), free);
}

#[test]
fn tickets() {
    let mut backend = backend();
    let step = ForwardStep { sequences: &[], tokens: &[], block_tables: &[], logits_out: false };
    let ticket = backend.submit(&Step::Forward(step)).unwrap();
    assert!(reason(backend.submit(&Step::Forward(step))).contains("not waited for"));
    let mut output = StepOutput::default();
    backend.wait(ticket, &mut output).unwrap();
    assert!(reason(backend.wait(ticket, &mut output)).contains("waited for already"));
}

#[test]
fn weights_that_overflow_are_reported_not_sampled() {
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let tensor = Tensor::random("w", 1, &[64, 32], Dtype::F32, 3e38, 0.0);
    let part = Part { tensor: tensor.view(), shard: Shard::whole(&[64, 32]) };
    let weight = backend.prepare(&[part], KRanges::whole(32), WeightForm::Float).unwrap();
    let mut builder = ProgramBuilder::new(KvSpec::f32(1, 2, 32), 64);
    let (x, y, logits) = (builder.step_buffer(32), builder.wanted_buffer(32), builder.wanted_buffer(64));
    builder.push(Op::Embed { table: weight, scale: 1.0, output: x }).push(Op::GatherRows { input: x, output: y });
    builder.push(Op::Gemm { weight, input: y, output: logits, epilogue: Epilogue::default() });
    backend.build(builder.finish(logits), limits(), Box::new(Solo)).unwrap();
    forward(&mut backend, &KV, &[Chunk { slot: 0, first: 0, tokens: vec![1], wanted: 1 }]).unwrap();
    let none = Span::default();
    let rows = [SampleRow {
        row: 0,
        slot: 0,
        params: SampleParams::greedy(),
        logit_bias: none,
        suppressed: none,
        mask: none,
        logprobs: None,
        given: None,
    }];
    let step = SampleStep { starts: &[], histories: &[], rows: &rows, logit_bias: &[], suppressed: &[], masks: &[] };
    let error = backend.submit(&Step::Sample(step)).unwrap_err();
    assert!(matches!(error, BackendError::NotFinite { row: 0 }), "{error}");
}
