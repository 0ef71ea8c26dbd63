//! The little that a Rust program wants on top of the generated stubs: tensors as slices, cut into chunks, and a stream
//! of steps in lock-step.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

pub mod v1 {
    tonic::include_proto!("adamant.v1");
}

use v1::optimizer_service_client::OptimizerServiceClient;
use v1::{Dtype, Initialization, StepHeader, StepRequest, StepResponse, StepResult, TensorChunk, TensorSpec};

/// 1 MiB of fp32: messages of that size are far below the 4 MiB that tonic and the server take.
const CHUNK_ELEMENTS: usize = 1 << 18;
/// Of any one call but a stream of steps. A call that finds no place on the server waits for one.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A tensor's elements, in row-major order.
pub type Tensor = Vec<f32>;

/// Calls one server. Clones share its connection.
#[derive(Clone)]
pub struct Client {
    pub channel: Channel,
    stub: OptimizerServiceClient<Channel>,
}

impl Client {
    /// Connects to the server at `target`, such as `localhost:50051`.
    pub async fn connect(target: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{target}"))?
            .connect()
            .await
            .with_context(|| format!("cannot connect to {target}"))?;
        Ok(Self {
            stub: OptimizerServiceClient::new(channel.clone()),
            channel,
        })
    }

    /// Makes a set with a name of its own that starts with `prefix`, trained by Adam with its defaults. Returns the name.
    pub async fn create(
        &mut self,
        prefix: &str,
        tensors: Vec<TensorSpec>,
        initialization: Initialization,
    ) -> Result<String, Status> {
        let name = format!("{prefix}/{}", unique_id());
        let spec = v1::ParameterSetSpec {
            name: name.clone(),
            tensors,
            initialization: initialization.into(),
            ..Default::default()
        };
        let request = v1::CreateParameterSetRequest {
            spec: Some(spec),
            ..Default::default()
        };
        self.stub.create_parameter_set(timed(request)).await?;
        Ok(name)
    }

    pub async fn delete(&mut self, name: &str) -> Result<(), Status> {
        let request = v1::DeleteParameterSetRequest {
            name: name.into(),
            ..Default::default()
        };
        self.stub.delete_parameter_set(timed(request)).await?;
        Ok(())
    }

    pub async fn step_result(&mut self, set: &str, request_id: &str) -> Result<v1::GetStepResultResponse, Status> {
        let request = v1::GetStepResultRequest {
            set: set.into(),
            request_id: request_id.into(),
            ..Default::default()
        };
        Ok(self.stub.get_step_result(timed(request)).await?.into_inner())
    }

    /// Replaces the parameters of every tensor of the set. Returns the incarnation that this makes.
    pub async fn write(&mut self, set: &str, parameters: &[Tensor]) -> Result<u64, Status> {
        let header = v1::WriteTensorsRequest {
            header: Some(v1::WriteHeader {
                set: set.into(),
                mode: v1::WriteMode::Parameters.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let last = v1::WriteTensorsRequest {
            last: true,
            ..Default::default()
        };
        let chunks: Vec<_> = chunks(parameters)
            .map(|chunk| v1::WriteTensorsRequest {
                chunks: vec![chunk],
                ..Default::default()
            })
            .collect();
        let messages = std::iter::once(header).chain(chunks).chain(std::iter::once(last));
        let response = self.stub.write_tensors(timed(tokio_stream::iter(messages))).await?;
        Ok(response.into_inner().incarnation)
    }

    /// Fills `parameters`, which has the tensors' sizes, with those of one single step, and returns which.
    pub async fn read(&mut self, set: &str, parameters: &mut [Tensor]) -> Result<v1::ReadHeader> {
        let request = v1::ReadTensorsRequest {
            set: set.into(),
            as_values: true,
            ..Default::default()
        };
        let mut responses = self.stub.read_tensors(timed(request)).await?.into_inner();
        let mut header = None;
        while let Some(response) = responses.message().await? {
            header = header.or(response.header);
            copy_chunks(&response.chunks, parameters)?;
        }
        header.context("a read without a header")
    }

    /// Opens a stream of steps.
    pub async fn open_steps(&mut self) -> Result<StepStream, Status> {
        // Room for one message: whoever sends waits until the connection takes them.
        let (requests, stream) = mpsc::channel(1);
        // Returns when the server's headers come. This server sends them before it has read anything.
        let responses = self.stub.step(ReceiverStream::new(stream)).await?.into_inner();
        Ok(StepStream { requests, responses })
    }
}

/// Carries steps, one after the other, each answered before the next is sent.
pub struct StepStream {
    requests: mpsc::Sender<StepRequest>,
    responses: Streaming<StepResponse>,
}

impl StepStream {
    /// Sends a gradient, and puts the updated parameters into `parameters`. After an error the stream has ended, and
    /// `parameters` may be of no single step.
    pub async fn step(
        &mut self,
        header: StepHeader,
        chunks: impl Iterator<Item = TensorChunk>,
        parameters: &mut [Tensor],
    ) -> Result<StepResult> {
        for request in requests(header, chunks) {
            if self.requests.send(request).await.is_err() {
                break; // The call has ended: the responses say why.
            }
        }
        while let Some(response) = self.responses.message().await? {
            copy_chunks(&response.chunks, parameters)?;
            if let Some(result) = response.result {
                return Ok(result);
            }
        }
        bail!("the server ended the stream without a result");
    }

    /// Ends the stream, and returns when the server has ended it, too.
    pub async fn close(mut self) -> Result<()> {
        drop(self.requests);
        ensure!(
            self.responses.message().await?.is_none(),
            "the server sent what nobody had asked for"
        );
        Ok(())
    }
}

/// New for every call: a name, or the request_id of a step.
pub fn unique_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Cuts tensors, in order of their index, into chunks. `values` is what needs no conversion in Rust.
pub fn chunks(tensors: &[Tensor]) -> impl Iterator<Item = TensorChunk> {
    tensors.iter().zip(0..).flat_map(|(tensor, index)| {
        tensor
            .chunks(CHUNK_ELEMENTS)
            .zip(0..)
            .map(move |(values, i)| TensorChunk {
                tensor: index,
                offset: i * CHUNK_ELEMENTS as i64,
                values: values.to_vec(),
                ..Default::default()
            })
    })
}

/// What an error of this service carries beside its code and message.
pub fn error_detail(status: &Status) -> Option<v1::ErrorDetail> {
    let details = v1::ErrorStatus::decode(status.details()).ok()?.details;
    details.iter().find_map(|detail| detail.to_msg().ok())
}

/// The messages of one step. A small model rides with the header. A whole chunk does not, so that the server makes room
/// before a large gradient moves; it has a message of its own, which is made when it is its turn.
fn requests(header: StepHeader, chunks: impl Iterator<Item = TensorChunk>) -> impl Iterator<Item = StepRequest> {
    let mut chunks = chunks.peekable();
    let mut first = StepRequest {
        header: Some(header),
        ..Default::default()
    };
    let mut room = CHUNK_ELEMENTS;
    while let Some(chunk) = chunks.next_if(|chunk| elements(chunk) < room) {
        room -= elements(&chunk);
        first.chunks.push(chunk);
    }
    first.last = chunks.peek().is_none();
    let mut next = Some(first);
    std::iter::from_fn(move || {
        let request = next.take()?;
        next = chunks.next().map(|chunk| StepRequest {
            chunks: vec![chunk],
            last: chunks.peek().is_none(),
            ..Default::default()
        });
        Some(request)
    })
}

fn elements(chunk: &TensorChunk) -> usize {
    chunk.values.len() + chunk.data.len() / 2
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

/// Copies chunks, in whichever form they came, to where they belong.
fn copy_chunks(chunks: &[TensorChunk], tensors: &mut [Tensor]) -> Result<()> {
    for chunk in chunks {
        let values = to_values(chunk)?;
        usize::try_from(chunk.offset)
            .ok()
            .and_then(|begin| {
                tensors
                    .get_mut(chunk.tensor as usize)?
                    .get_mut(begin..begin + values.len())
            })
            .with_context(|| {
                format!(
                    "no {} elements of tensor {} at {}",
                    values.len(),
                    chunk.tensor,
                    chunk.offset
                )
            })?
            .copy_from_slice(&values);
    }
    Ok(())
}

fn to_values(chunk: &TensorChunk) -> Result<Cow<'_, [f32]>> {
    if chunk.data.is_empty() {
        return Ok(Cow::from(&chunk.values));
    }
    let (data, dtype) = (&chunk.data, chunk.dtype());
    Ok(match dtype {
        Dtype::Unspecified | Dtype::Float32 => data
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        Dtype::Bfloat16 => data
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
            .collect(),
        Dtype::Float16 => bail!("expected fp32 or bf16, got {}", dtype.as_str_name()),
    })
}
