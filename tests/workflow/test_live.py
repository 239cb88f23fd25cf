"""How a preset is followed, in a terminal and in a log."""

import io
import time

from dcopy.workflow.live import Live


class Terminal(io.StringIO):
    def isatty(self):
        return True


def follow(stream) -> str:
    live = Live(2, 0, time.time(), stream)
    live.show("03 none | starts\n", 0)
    live.show("03 none | epoch 1/2\n", 0)
    live.show("03 none | finished in 2 s\n", 1)
    live.close()
    return stream.getvalue()


def test_a_log_has_every_line_with_the_count_of_jobs():
    lines = follow(io.StringIO()).splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "03 none | starts",
        "03 none | epoch 1/2",
        "03 none | finished in 2 s",
    ]
    assert lines[0].startswith("[0/2 0:0") and lines[2].startswith("[1/2 ")


def test_a_terminal_has_one_line_that_updates_and_a_line_for_each_end():
    shown = follow(Terminal())
    assert shown.count("\n") == 1 and "03 none: finished in 2 s\n" in shown
    assert "1/2 notebooks" in shown and "03 none: epoch 1/2" in shown and "left" in shown
