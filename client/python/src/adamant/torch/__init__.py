"""Torch's Adam, AdamW and SGD, with parameters and state on an Adamant server.

    optimizer = adamant.torch.RemoteAdamW(model.parameters(), lr=1e-3, target="localhost:50051")
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss(model(inputs), labels).backward()
        optimizer.step()

Everything else stays as it was: schedulers, gradient scalers, hooks, state dicts and checkpoints.
"""

from adamant.torch._optimizers import RemoteAdam, RemoteAdamW, RemoteSGD

__all__ = ["RemoteAdam", "RemoteAdamW", "RemoteSGD"]
