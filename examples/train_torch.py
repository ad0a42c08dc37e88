"""Train torch on ragged events: `python examples/train_torch.py [uproot-HZZ.root]`."""

from __future__ import annotations

import sys

import torch
from collisions import P4, from_file, made_up, report, rows_of, soas

import soaview_torch
from soaview import Spec

EVENT = Spec(met=["MET_px", "MET_py"])
BATCH = Spec({**EVENT, "z": "z", "first": "first", "count": "count"})
MUON = Spec(p4=P4, event="event")


class Net(torch.nn.Module):
    """The missing momentum, and the sum of what the event's muons are encoded as."""

    def __init__(self) -> None:
        super().__init__()
        self.muon, self.met = torch.nn.Linear(4, 32), torch.nn.Linear(2, 32)
        self.hidden, self.last = torch.nn.Linear(64, 32), torch.nn.Linear(32, 1)

    def forward(self, met, p4, event):
        encoded = torch.relu(self.muon(p4 / 50))
        pooled = encoded.new_zeros((len(met), 32)).index_add_(0, event, encoded)
        both = torch.cat([torch.relu(self.met(met / 25)), pooled], dim=1)
        return self.last(torch.relu(self.hidden(both)))[:, 0]


def main(path: str | None = None) -> None:
    """Train, then score all events."""
    frame, columns = from_file(path) if path else made_up()
    events, muons = soas(frame, columns)
    torch.manual_seed(0)
    model, trained = Net(), len(events) * 3 // 4
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss_of = torch.nn.BCEWithLogitsLoss()
    batches = soaview_torch.loader(events[:trained], BATCH, 64, shuffle=True)
    losses = []
    for _ in range(10):
        total = 0.0
        for met, wanted, first, count in batches:
            mine = muons.take(rows_of(first.numpy(), count.numpy()))
            [p4] = soaview_torch.tensors(mine, MUON.subset("p4"))
            event = soaview_torch.segments(mine, counts=count)
            loss = loss_of(model(met, p4, event), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(batches))
    # All events at once, from the columns themselves into a column.
    soaview_torch.forward(
        model.eval(), [(events, EVENT), (muons, MUON)], (events, Spec(score="score"))
    )
    report(frame, events, losses, trained)


if __name__ == "__main__":
    main(*sys.argv[1:])
