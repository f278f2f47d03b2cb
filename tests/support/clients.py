"""The real Hub clients in processes of their own."""

from dataclasses import dataclass
from typing import Any

from tests.support.loopback_hub import (
    client,
)


@dataclass
class Done:
    code: int
    stdout: str
    stderr: str

    @property
    def tag(self) -> str:
        assert self.code == 0, self.stderr + self.stdout
        return self.stdout.splitlines()[-1]


def run_client(code: str, arguments: list[Any], environment: dict[str, str]) -> Done:
    with client(code, arguments, environment) as process:
        stdout, stderr = process.communicate()
    return Done(process.returncode, stdout, stderr)
