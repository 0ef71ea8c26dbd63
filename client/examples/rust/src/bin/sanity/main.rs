//! Trains a small network whose optimizer lives on a server, and checks that the losses are those of the reference.
//!
//!     sanity localhost:50051

mod network;

use adamant_example::v1::{Initialization, StepHeader, StepOutcome};
use adamant_example::{Client, chunks, unique_id};
use anyhow::{Context, Result, ensure};

const EPOCHS: i64 = 50;
/// PyTorch's, of epochs 5, 10, ..., 50, each before its update.
const REFERENCE_LOSSES: [&str; 10] = [
    "0.809774", "0.721449", "0.638959", "0.562460", "0.491979", "0.428558", "0.372196", "0.320848", "0.274360",
    "0.232563",
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let target = std::env::args().nth(1).context("usage: sanity HOST:PORT")?;
    let mut client = Client::connect(&target).await?;
    let name = client
        .create("examples/rust", network::tensor_specs(), Initialization::Written)
        .await?;
    let losses = train(&mut client, &name).await;
    client.delete(&name).await?;
    let losses = losses?;
    ensure!(
        losses == REFERENCE_LOSSES,
        "expected the losses {REFERENCE_LOSSES:?}, got {losses:?}"
    );
    println!("The losses match the reference.");
    Ok(())
}

/// Returns the loss of every fifth epoch.
async fn train(client: &mut Client, name: &str) -> Result<Vec<String>> {
    let mut losses = Vec::new();
    let mut parameters = network::initial_parameters();
    let mut gradient = network::zeros();
    let incarnation = client.write(name, &parameters).await?;
    let mut steps = client.open_steps().await?;
    for epoch in 1..=EPOCHS {
        let loss = network::loss_and_gradient(&parameters, [1.0, 2.0], 1.0, &mut gradient);
        if epoch % 5 == 0 {
            println!("Epoch {epoch:02}: loss = {loss:.6}");
            losses.push(format!("{loss:.6}"));
        }
        // Exactly once: this step, from this state, whatever becomes of the connection.
        let header = StepHeader {
            set: name.into(),
            incarnation: Some(incarnation),
            request_id: unique_id(),
            expected_step: Some(epoch - 1),
            ..Default::default()
        };
        let result = steps.step(header, chunks(&gradient), &mut parameters).await?;
        let outcome = result.outcome();
        ensure!(
            outcome == StepOutcome::Applied,
            "epoch {epoch}: {}",
            outcome.as_str_name()
        );
    }
    steps.close().await?;
    Ok(losses)
}
