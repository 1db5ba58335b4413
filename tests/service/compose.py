"""deploy/compose.yaml carried out without Docker: each part is a process of this machine, in the order of the file, with the
file's own command, environment, secrets and health check. Only addresses, ports and the places of volumes are other ones.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from live import ROOT, free_port
from test_proxy import NGINX, configuration

DEPLOY: Final = ROOT / "deploy"
FILE: Final = DEPLOY / "compose.yaml"
SEAWEEDFS: Final = "chrislusf/seaweedfs:"


def services() -> dict[str, dict[str, Any]]:
    """The file's services, with the defaults of its variables."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILE.read_text())
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def waits_for(service: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = service.get("depends_on", {})
    return found


class Stack:
    """The stack in a folder. `weed` is the S3 server's program."""

    def __init__(self, folder: Path, database: Path, weed: Path) -> None:
        self.folder, self.database, self.weed = folder, database, weed
        self.services = services()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        ports = re.findall(r"\b(?:[345]\d{3}|8333|9333)\b", FILE.read_text())
        self.ports = {port: str(free_port()) for port in sorted({*ports, "80", "443", "volume", "filer"})}
        made = ["sh", str(DEPLOY / "secrets.sh"), str(folder / "secrets")]
        subprocess.run(made, check=True, capture_output=True)

    # --- from the file to this machine

    def places(self, name: str) -> dict[str, Path]:
        """Where a service's folders and files are here: its volumes, its secrets, what is in its image."""
        service = self.services[name]
        found = {"/srv/wbc": ROOT, "/tmp": self.folder / "tmp" / name}  # noqa: S108
        if name == "deployments":  # names the folder to the worker, and does not look into it
            found["/workspace"] = self.folder / "volumes/workspace"
        for volume in service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            found[target] = DEPLOY / source if source.startswith("./") else self.folder / "volumes" / source
        for secret in service.get("secrets", ()):
            source = secret if isinstance(secret, str) else secret["source"]
            found[f"/run/secrets/{source}" if isinstance(secret, str) else secret["target"]] = self.folder / "secrets" / source
        for place in found.values():
            if not place.suffix:
                place.mkdir(parents=True, exist_ok=True)
        return found

    def here(self, name: str, text: str) -> str:
        """A word of the file as it is meant on this machine."""
        places = self.places(name)
        paths = "|".join(map(re.escape, sorted(places, reverse=True)))
        text = re.sub(rf"(?<![\w.:/-])({paths})(?=[/\s'\"]|$)", lambda found: str(places[found[1]]), text)
        text = text.replace("0.0.0.0", "127.0.0.1").replace("-ip=s3", "-ip=127.0.0.1")  # noqa: S104
        text = re.sub(r"\b(postgres|s3|prefect|mlflow)(?=:(?:[345]\d{3}|8333|9333)\b)", "127.0.0.1", text)
        numbers = "|".join(port for port in self.ports if port.isdigit() and len(port) == 4)
        return re.sub(rf"(?<![\w.]) ?\b({numbers})\b", lambda found: found[0].replace(found[1], self.ports[found[1]]), text)

    def environment(self, name: str) -> dict[str, str]:
        """What the file says, its env files too, and nothing of this machine but where programs are."""
        service = self.services[name]
        values = {key: str(value) for key, value in service.get("environment", {}).items()}
        for file in service.get("env_file", ()):
            lines = (self.folder / file).read_text().splitlines()
            values |= dict(line.split("=", 1) for line in lines if line)
        programs = [str(Path(sys.executable).parent), str(self.weed.parent), os.environ["PATH"]]
        ours = {"PATH": os.pathsep.join(programs), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return {key: self.here(name, value) for key, value in values.items()} | ours

    def command(self, name: str) -> list[str]:
        service = self.services[name]
        words = [*service.get("entrypoint", ()), *service["command"]]
        more = {
            "s3": [
                f"-{part}.port={self.ports[port]}"
                for part, port in (("master", "9333"), ("volume", "volume"), ("filer", "filer"))
            ]
            + ["-s3.port.lance=0", "-s3.port.iceberg=0"]  # which two stacks at once would want at the same address
        }
        return [self.here(name, word) for word in words] + more.get(name, [])

    # --- what Docker would do

    def run(self, name: str, command: str, **more: Any) -> str:
        """`docker compose exec NAME COMMAND`."""
        words = [self.here(name, word) for word in shlex.split(command)]
        done = subprocess.run(
            words, cwd=self.working_folder(name), env=self.environment(name), capture_output=True, text=True, check=False, **more
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}\n{self.log(name)}"
        return done.stdout

    def working_folder(self, name: str) -> Path:
        return self.places(name).get("/workspace", self.folder)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text()[-4000:] if path.exists() else ""

    def up(self, *names: str) -> None:
        """Start services, after those that they wait for, and wait until each is healthy or has ended well."""
        for name in names:
            self._up(name, wait=True)

    def _up(self, name: str, wait: bool) -> None:
        if name == "owners":
            return  # volumes are folders of ours
        if name not in self.running:
            for other, how in waits_for(self.services[name]).items():
                if other not in self.running:
                    self._up(other, wait=how["condition"] != "service_started")
            if name == "postgres":
                self._make_databases()
            self._start(name)
        if wait:
            self._wait(name)

    def _start(self, name: str) -> None:
        if name == "nginx":
            words, account = self._nginx(), None
        elif name == "postgres":
            words, account = self._postgres(), "postgres" if os.geteuid() == 0 else None
        else:
            words, account = self.command(name), None
        folder = self.database if name == "postgres" else self.working_folder(name)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                words, cwd=folder, env=self.environment(name), stdout=log, stderr=log, user=account, start_new_session=True
            )

    def _wait(self, name: str, seconds: float = 240) -> None:
        service, process = self.services[name], self.running[name]
        if service["restart"] == "no":
            assert process.wait(seconds) == 0, self.log(name)
            return
        if "healthcheck" not in service:
            return
        kind, *words = service["healthcheck"]["test"]
        assert kind == "CMD"
        check = [self.here(name, word).replace(":443/", f":{self.ports['443']}/") for word in words]

        def healthy() -> bool:
            assert process.poll() is None, f"{name} ended\n{self.log(name)}"
            return subprocess.run(check, env=self.environment(name), capture_output=True, check=False).returncode == 0

        until(healthy, seconds, lambda: f"{name} is not healthy\n{self.log(name)}")

    def stop(self, *names: str) -> None:
        """End services as Docker does."""
        for name in names:
            process = self.running.pop(name)
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def down(self) -> None:
        self.stop(*reversed(list(self.running)))

    # --- what images do beside their command

    def _make_databases(self) -> None:
        """As the image of PostgreSQL does for an empty volume: initdb, then what is in docker-entrypoint-initdb.d."""
        values = self.environment("postgres")
        password, data = self.database / "password", self.database / "data"
        password.write_text(values["POSTGRES_PASSWORD"])
        account = "postgres" if os.geteuid() == 0 else None
        for path in (self.database, password):
            if account:
                shutil.chown(path, account)

        def do(*words: str, **more: str) -> None:
            with (self.database / "log").open("ab") as log:
                done = subprocess.run(
                    words, user=account, cwd=self.database, env=values | more, stdout=log, stderr=log, check=False
                )
            assert done.returncode == 0, (self.database / "log").read_text()

        user, trust = values["POSTGRES_USER"], ["--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync"]
        do("initdb", "-D", str(data), "-U", user, f"--pwfile={password}", "-E", "UTF8", *trust)
        server = f"-c listen_addresses='' -c fsync=off -k {self.database}"
        do("pg_ctl", "-D", str(data), "-w", "-o", server, "-l", str(self.database / "server.log"), "start")
        shutil.copy(self.places("postgres")["/docker-entrypoint-initdb.d/databases.sh"], self.database / "databases.sh")
        do("sh", str(self.database / "databases.sh"), PGHOST=str(self.database))
        do("pg_ctl", "-D", str(data), "-w", "-m", "fast", "stop")

    def _postgres(self) -> list[str]:
        more = ["-D", str(self.database / "data"), "-k", str(self.database), "-p", self.ports["5432"]]
        return [*self.command("postgres"), *more, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]

    def _nginx(self) -> list[str]:
        """The image's main file around the shipped one."""
        folder = self.places("nginx")["/tmp"]  # noqa: S108
        for target, place in self.places("nginx").items():
            if target.startswith("/etc/nginx/wbc."):
                shutil.copy(place, folder / Path(target).name)
        main = configuration(folder, int(self.ports["3000"]), int(self.ports["80"]), int(self.ports["443"]))
        return [str(NGINX), "-c", str(main), "-p", str(folder)]


def until(condition: Callable[[], Any], seconds: float, says: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, says()
        time.sleep(0.5)


@contextmanager
def stack_in(folder: Path, weed: Path) -> Iterator[Stack]:
    """The stack, of which nothing runs yet; all that was started ends with the block."""
    with tempfile.TemporaryDirectory(prefix="wbc-stack-") as database:  # PostgreSQL's own account enters it
        stack = Stack(folder, Path(database), weed)
        try:
            yield stack
        finally:
            stack.down()
