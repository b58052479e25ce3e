"""Engines that compute nothing; in a module of their own, so that the processes which race them start fast."""

import os
import signal

import numpy as np

from experiments.race.engines.base import Engine, Stepwise, Timing


class Stub(Engine):
    """Takes the time it is told, and remembers what it was given."""

    def __init__(self, seconds_a_token: float = 0.001):
        self.seconds_a_token, self.seen = seconds_a_token, []

    def generate(self, prompts, new_tokens):
        self.seen.append(prompts.tolist())
        return Timing(2 * self.seconds_a_token, (self.seconds_a_token,) * (new_tokens - 1))


class Printing(Stub):
    """Writes on stdout, as libraries do, and dies when told to."""

    def load(self, folder, threads):
        assert os.environ["OMP_NUM_THREADS"] == str(threads)

    def generate(self, prompts, new_tokens):
        os.write(1, b"a library says hello\n")
        if new_tokens == 9:
            os._exit(3)
        return super().generate(prompts, new_tokens)


class Crashing(Stub):
    """Dies as a library does that was built for another CPU; before that it says what it is told to."""

    said = ""

    def load(self, folder, threads):
        pass

    def generate(self, prompts, new_tokens):
        os.write(2, self.said.encode())
        os.kill(os.getpid(), signal.SIGILL)


class CrashingAloud(Crashing):
    said = "built for another CPU\n\nggml: <AMX> | tile 3\n"


class Owning(Stub):
    package, own_environment = "own-package", ".venv-own"

    def load(self, folder, threads):
        pass

    def paths(self):
        return os.environ["PYTHONPATH"].split(os.pathsep)


class OursStub(Stub):
    name, package, files, texts = "ours", "numpy", ("weights",), ("random",)
    note, starts_from = "a stub", "model.safetensors"

    def prepare(self, source, folder):
        assert (source / self.starts_from).is_file()
        (folder / "weights").write_bytes(b"x" * 10)
        return "ten bytes"

    def load(self, folder, threads):
        assert (folder / "weights").is_file()


class PeerStub(OursStub):
    name, made_from, starts_from, full_heads = "peer", OursStub, "weights", True


class MissingStub(OursStub):
    name, package = "missing", "no-such-package"


class UnconvertibleStub(OursStub):
    name = "unconvertible"

    def prepare(self, source, folder):
        raise ValueError("pruned heads are not supported")


class TorchStub(Stepwise):
    """An engine under the name of one of torch's: the most probable token is the one after the token that was read."""

    name, package, files, note = "torch eager FP32", "numpy", ("weights",), "a stub"
    fails = False

    def prepare(self, source, folder):
        assert (source / "config.json").is_file()
        if self.fails:
            raise ValueError("no such operator")
        (folder / "weights").write_bytes(b"x")

    def load(self, folder, threads):
        assert (folder / "weights").is_file()
        assert os.environ["OMP_NUM_THREADS"] == str(threads)

    def read(self, ids, past):
        logits = np.zeros((len(ids), 320), np.float32)
        logits[np.arange(len(ids)), (ids[:, -1] + 1) % 320] = 5
        return logits


class Int8Stub(TorchStub):
    name = "torch dynamic INT8"


class UnconvertibleTorchStub(TorchStub):
    name, fails = "ONNX Runtime FP32", True

    def prepare(self, source, folder):
        super().prepare(source, folder)
