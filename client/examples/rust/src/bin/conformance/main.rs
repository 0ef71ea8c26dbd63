//! Checks one promise of a server, as seen from Rust, and exits with 1 if it is broken. tests/interop/conformance runs it.
//!
//!     conformance chunks|replay|error|health|reflection|bf16 HOST:PORT

mod adam;

use adam::Adam;
use adamant_example::v1::{self, Dtype, ErrorReason, Initialization, StepHeader, StepState, TensorChunk, TensorSpec};
use adamant_example::{Client, chunks, error_detail};
use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost_types::FileDescriptorProto;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const SERVICE: &str = "adamant.v1.OptimizerService";
const USAGE: &str = "usage: conformance chunks|replay|error|health|reflection|bf16 HOST:PORT";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [case, target] = arguments.as_slice() else {
        bail!(USAGE)
    };
    let mut client = Client::connect(target).await?;
    match case.as_str() {
        "chunks" => {
            let name = create(&mut client, &[1_000_000, 3], Initialization::Written).await?;
            let outcome = check_chunks(&mut client, &name).await;
            finish(&mut client, &name, outcome).await
        }
        "replay" => {
            let name = create(&mut client, &[2], Initialization::Zeros).await?;
            let outcome = check_replay(&mut client, &name).await;
            finish(&mut client, &name, outcome).await
        }
        "error" => {
            let name = create(&mut client, &[4], Initialization::Zeros).await?;
            let outcome = check_error(&mut client, &name).await;
            finish(&mut client, &name, outcome).await
        }
        "bf16" => {
            let name = create(&mut client, &[4096], Initialization::Zeros).await?;
            let outcome = check_bf16(&mut client, &name).await;
            finish(&mut client, &name, outcome).await
        }
        "health" => check_health(&client).await,
        "reflection" => check_reflection(&client).await,
        _ => bail!(USAGE),
    }
}

/// A new set of one tensor.
async fn create(client: &mut Client, shape: &[i64], initialization: Initialization) -> Result<String, Status> {
    let tensor = TensorSpec {
        name: "x".into(),
        shape: shape.to_vec(),
        ..Default::default()
    };
    client.create("conformance/rust", vec![tensor], initialization).await
}

async fn finish(client: &mut Client, name: &str, outcome: Result<()>) -> Result<()> {
    client.delete(name).await?;
    outcome
}

/// In [-1, 1), as every language here makes them: seed 0 are parameters, 1 and on gradients. Every 16th is so small that
/// Adam takes some of them for zero.
fn pseudo_random(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32)
        .map(|i| {
            let bits = i
                .wrapping_mul(2_654_435_761)
                .wrapping_add(seed.wrapping_mul(2_246_822_519));
            let value = (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
            if i % 16 == 0 { value * 2f32.powi(-57) } else { value }
        })
        .collect()
}

fn expect_same_bits(what: &str, expected: &[f32], got: &[f32]) -> Result<()> {
    ensure!(
        expected.len() == got.len(),
        "{what}: expected {} elements, got {}",
        expected.len(),
        got.len()
    );
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        ensure!(e.to_bits() == g.to_bits(), "{what}: element {i}: expected {e}, got {g}");
    }
    Ok(())
}

fn header(name: &str, step: i64) -> StepHeader {
    StepHeader {
        set: name.into(),
        request_id: format!("step {step}"),
        expected_step: Some(step),
        ..Default::default()
    }
}

/// A tensor of several messages, each way, with gRPC's default limits.
async fn check_chunks(client: &mut Client, name: &str) -> Result<()> {
    const ELEMENTS: usize = 3_000_000;
    let mut local = Adam::new(pseudo_random(ELEMENTS, 0));
    client.write(name, std::slice::from_ref(&local.p)).await?;
    let mut parameters = vec![vec![0.0; ELEMENTS]];
    let mut steps = client.open_steps().await?;
    for step in 0..3 {
        let gradient = [pseudo_random(ELEMENTS, step + 1)];
        steps
            .step(header(name, step.into()), chunks(&gradient), &mut parameters)
            .await?;
        local.update(&gradient[0]);
        expect_same_bits(&format!("the reply of step {}", step + 1), &local.p, &parameters[0])?;
    }
    steps.close().await?;
    parameters[0].fill(0.0);
    let read = client.read(name, &mut parameters).await?;
    ensure!(read.step == 3, "a read: expected step 3, got {}", read.step);
    expect_same_bits("a read", &local.p, &parameters[0])
}

/// A step that is sent again is answered, not applied again.
async fn check_replay(client: &mut Client, name: &str) -> Result<()> {
    let gradient = [vec![0.5, -0.25]];
    let mut local = Adam::new(vec![0.0; 2]);
    local.update(&gradient[0]);
    let mut results = Vec::new();
    for _ in 0..2 {
        let mut parameters = vec![vec![0.0; 2]];
        let mut steps = client.open_steps().await?;
        results.push(steps.step(header(name, 0), chunks(&gradient), &mut parameters).await?);
        steps.close().await?;
        expect_same_bits("the reply", &local.p, &parameters[0])?;
    }
    let replayed = v1::StepResult {
        replayed: true,
        ..results[0].clone()
    };
    ensure!(
        !results[0].replayed && results[1] == replayed,
        "expected {replayed:?} the second time, got {results:?}"
    );
    let asked = client.step_result(name, "step 0").await?;
    ensure!(
        asked.state() == StepState::Committed && asked.step == 1,
        "expected COMMITTED at step 1, got {asked:?}"
    );
    Ok(())
}

/// An error says in a form for programs what was wrong and where.
async fn check_error(client: &mut Client, name: &str) -> Result<()> {
    let gap = TensorChunk {
        tensor: 0,
        offset: 1,
        values: vec![1.0; 3],
        ..Default::default()
    };
    let mut steps = client.open_steps().await?;
    let outcome = steps
        .step(header(name, 0), std::iter::once(gap), &mut [vec![0.0; 4]])
        .await;
    let Err(error) = outcome else {
        bail!("a gap: expected an error, got {outcome:?}")
    };
    let status: Status = error.downcast()?;
    ensure!(
        status.code() == Code::InvalidArgument,
        "a gap: expected INVALID_ARGUMENT, got {status}"
    );
    let got = error_detail(&status).with_context(|| format!("no ErrorDetail in {status:?}"))?;
    // What is zero is there, and not absent. Whether the detail says where the set stands is not looked at.
    let expected = v1::ErrorDetail {
        reason: ErrorReason::ChunkOutOfOrder.into(),
        set: name.into(),
        incarnation: got.incarnation,
        step: got.step,
        tensor: Some(0),
        offset: Some(1),
        expected_offset: Some(0),
        field: "chunks[0].offset".into(),
    };
    ensure!(got == expected, "a gap: expected {expected:?}, got {got:?}");
    Ok(())
}

async fn check_health(client: &Client) -> Result<()> {
    let mut health = HealthClient::new(client.channel.clone());
    let request = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    for service in ["", SERVICE] {
        let status = health.check(request(service)).await?.into_inner().status();
        ensure!(
            status == ServingStatus::Serving,
            "{service:?}: expected SERVING, got {status:?}"
        );
    }
    let nobody = health.check(request("nobody")).await;
    ensure!(
        nobody.as_ref().is_err_and(|status| status.code() == Code::NotFound),
        "the health of nobody: expected NOT_FOUND, got {nobody:?}"
    );
    Ok(())
}

async fn check_reflection(client: &Client) -> Result<()> {
    let ask = |question| ServerReflectionRequest {
        message_request: Some(question),
        ..Default::default()
    };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(SERVICE.into())),
    ];
    let mut answers = ServerReflectionClient::new(client.channel.clone())
        .server_reflection_info(tokio_stream::iter(questions))
        .await?
        .into_inner();
    let mut next = async || anyhow::Ok(answers.message().await?.and_then(|answer| answer.message_response));
    let services = next().await?;
    let Some(MessageResponse::ListServicesResponse(list)) = &services else {
        bail!("expected a list of services, got {services:?}")
    };
    ensure!(
        list.service.iter().any(|s| s.name == SERVICE),
        "expected {SERVICE} among {list:?}"
    );
    let files = next().await?;
    let Some(MessageResponse::FileDescriptorResponse(files)) = files else {
        bail!("expected the file of {SERVICE}, got {files:?}")
    };
    let mut methods = Vec::new();
    for file in &files.file_descriptor_proto {
        let services = FileDescriptorProto::decode(file.as_slice())?.service;
        methods.extend(services.into_iter().flat_map(|service| service.method));
    }
    let step = methods.iter().find(|method| method.name() == "Step");
    ensure!(
        step.is_some_and(|step| step.client_streaming() && step.server_streaming()),
        "expected the method Step, streaming both ways, got {methods:?}"
    );
    Ok(())
}

/// Gradients in 16 bits are widened exactly, and a reply in 16 bits is rounded to the nearest.
async fn check_bf16(client: &mut Client, name: &str) -> Result<()> {
    const ELEMENTS: usize = 4096;
    let mut local = Adam::new(vec![0.0; ELEMENTS]);
    let mut steps = client.open_steps().await?;
    for (step, reply_dtype) in [Dtype::Float32, Dtype::Bfloat16].into_iter().enumerate() {
        // The upper half of a float is the bf16 below it.
        let upper: Vec<u16> = pseudo_random(ELEMENTS, step as u32 + 1)
            .iter()
            .map(|g| (g.to_bits() >> 16) as u16)
            .collect();
        let chunk = TensorChunk {
            dtype: Dtype::Bfloat16.into(),
            data: upper.iter().flat_map(|bits| bits.to_le_bytes()).collect(),
            ..Default::default()
        };
        let mut header = header(name, step as i64);
        header.set_reply_dtype(reply_dtype);
        let mut parameters = vec![vec![0.0; ELEMENTS]];
        steps.step(header, std::iter::once(chunk), &mut parameters).await?;
        let gradient: Vec<f32> = upper
            .iter()
            .map(|&bits| f32::from_bits(u32::from(bits) << 16))
            .collect();
        local.update(&gradient);
        let expected: Vec<f32> = match reply_dtype {
            Dtype::Bfloat16 => local.p.iter().map(|&p| round_to_bf16(p)).collect(),
            _ => local.p.clone(),
        };
        expect_same_bits(&format!("the reply in {reply_dtype:?}"), &expected, &parameters[0])?;
    }
    steps.close().await
}

fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}
