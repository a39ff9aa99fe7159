"""The unit of systemd: what can be known of it without systemd running."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deployment.conftest import DEPLOYMENT, SAVING_SECONDS

UNIT = DEPLOYMENT / "systemd" / "simclr@.service"

DIRECTIVES = {  # for machines without systemd; `man systemd.directives` has them all
    "Unit": "Description After Wants RequiresMountsFor StartLimitIntervalSec StartLimitBurst",
    "Service": """Type User Group UMask Environment EnvironmentFile LoadCredential ExecStart StateDirectory Restart
        RestartSec RestartPreventExitStatus SuccessExitStatus KillMode TimeoutStopSec OOMPolicy LimitNOFILE
        NoNewPrivileges CapabilityBoundingSet ProtectSystem ReadWritePaths ProtectHome PrivateTmp ProtectHostname
        ProtectKernelModules ProtectKernelLogs ProtectKernelTunables ProtectControlGroups LockPersonality
        RestrictNamespaces RestrictRealtime RestrictSUIDSGID SystemCallArchitectures RestrictAddressFamilies""",
    "Install": "WantedBy",
}
# Each closes /dev in some way, ProtectClock by an implied DeviceAllow; or forbids what compilers of torch need.
BREAKS_GPUS = {"PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy", "MemoryDenyWriteExecute"}


def parse_unit(text: str) -> dict[str, list[tuple[str, str]]]:
    sections: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            entries = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            key, separator, value = line.partition("=")
            assert separator, line
            entries.append((key, value))
    return sections


def unit_faults(text: str, folder: Path) -> list[str]:
    """What is wrong with a unit: by systemd itself where it is installed, and by the list above everywhere."""
    sections = parse_unit(text)
    faults = [f"unknown section {section}" for section in sections.keys() - DIRECTIVES.keys()]
    faults += [
        f"unknown directive {key} in {section}"
        for section, entries in sections.items()
        for key, _ in entries
        if key not in DIRECTIVES.get(section, "").split()
    ]
    if analyze := shutil.which("systemd-analyze"):
        instance = folder / "simclr@my-images.service"
        instance.write_text(text.replace("/opt/simclr/bin/simclr", "/bin/true"))
        done = subprocess.run([analyze, "verify", "--man=no", instance], capture_output=True, text=True, check=False)
        faults += [line for line in done.stderr.splitlines() if "simclr@" in line]  # other units are not our business
    return faults


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    assert unit_faults(UNIT.read_text(), tmp_path) == []


@pytest.mark.parametrize("fault", ["NoNewPrivilegs=yes", "[Servicee]"])
def test_a_fault_in_the_unit_is_found(tmp_path: Path, fault: str) -> None:
    text = UNIT.read_text().replace("[Install]", f"{fault}\n[Install]")
    assert unit_faults(text, tmp_path) != []


def test_the_unit_reaches_gpus_and_takes_secrets_from_files() -> None:
    service = dict(entries := parse_unit(UNIT.read_text())["Service"])
    assert float(service["TimeoutStopSec"]) >= SAVING_SECONDS
    assert (service["KillMode"], service["OOMPolicy"]) == ("mixed", "continue")
    assert "AF_NETLINK" in service["RestrictAddressFamilies"]
    assert not BREAKS_GPUS & service.keys()
    assert service["EnvironmentFile"] == "-/etc/simclr/%i.env"
    assert not [value for key, value in entries if key == "Environment" and re.search("PASSWORD=|KEY|TOKEN", value)]
    assert not [value for _, value in entries if "%I" in value]  # it would turn my-images into my/images
