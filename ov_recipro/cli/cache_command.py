"""`ov-recipro cache`: what is kept from one run to the next."""

from __future__ import annotations

import click

from ov_recipro.output import as_record


@click.group("cache")
def command() -> None:
    """Show or clear what is kept from one run to the next.

    These are split models, verdicts on plans, compiled models and models of the hub. All of it can
    be rebuilt. When a split model is added and the cache exceeds $OV_RECIPRO_MAX_CACHE_BYTES
    (8 GiB), the entries used least recently are removed.
    """


@command.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    """Show where the cache is, what is in it and how large it is."""
    from typing import get_args

    from ov_recipro.limits import CACHE_BYTES
    from ov_recipro.output import CacheKind, user_cache
    from ov_recipro.splitting.bundle_cache import entries

    found = {kind: entries(kind) for kind in get_args(CacheKind)}
    if as_json:
        kinds = {
            kind: {"entries": len(kept), "bytes": sum(entry.size for entry in kept)}
            for kind, kept in found.items()
        }
        record = {"folder": str(user_cache()), "limit": CACHE_BYTES.value, **kinds}
        click.echo(as_record(record), nl=False)
        return
    click.echo(f"folder    {user_cache()}")
    for kind, kept in found.items():
        size = sum(entry.size for entry in kept)
        click.echo(f"{kind:8}  {len(kept)}, {_megabytes(size)}")
    click.echo(f"limit     {_megabytes(CACHE_BYTES.value)} ({CACHE_BYTES.variable})")


@command.command("clear")
def clear() -> None:
    """Remove everything from the cache."""
    from ov_recipro.splitting.bundle_cache import clear as clear_cache

    click.echo(f"{_megabytes(clear_cache())} freed.")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
