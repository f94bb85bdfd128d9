"""What another state has learnt, with streams of one's own."""

import torch
from torch import Tensor, nn

from samplers.state import State, Stream, adopt


class Place:
    """A position in a set, which advances like a stream."""

    def __init__(self, at: int) -> None:
        self.at = at

    def advance(self, n: int) -> Tensor:
        self.at += n
        return torch.arange(self.at)


def state(seed: int) -> State:
    return State(
        stream=Stream(seed),
        place=Place(seed),
        net=nn.Linear(2, 2),
        count=seed,
        bank=torch.full((seed,), 1.0),
        parts=[Stream(seed), State(inner=Stream(seed), total=torch.tensor(seed))],
    )


def test_adopts_what_was_learnt_and_no_stream() -> None:
    old, new = state(3), state(9)
    streams, places = new.stream, new.place
    found = adopt(new, old)
    assert found is new
    assert new.stream is streams
    assert new.place is places
    assert new.net is old.net
    assert (new.count, len(new.bank), new.parts[1].total.item()) == (3, 3, 3)
    assert (new.parts[0].seed, new.parts[1].inner.seed) == (9, 9)
    new.stream.advance()
    new.parts[1].inner.advance()
    new.count += 1
    assert (old.stream.step, old.parts[1].inner.step, old.count) == (0, 0, 3)
