"""`ov-recipro devices`: which devices are available here and why others are not."""

from __future__ import annotations

import click

from ov_recipro.output import as_record


@click.command("devices")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the devices that models can run on here, and say why others are not available."""
    from ov_recipro.runtimes import describe_devices

    devices = describe_devices()
    if as_json:
        click.echo(as_record(devices), nl=False)
        return
    for device in devices:
        state = device.name if device.available else f"not available: {device.name}"
        click.echo(f"{device.device:8}  {state}")
