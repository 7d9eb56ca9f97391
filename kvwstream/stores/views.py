"""Stores and statistics as xarray data sets: named axes, read lazily, for notebooks and checks."""

from __future__ import annotations

import numpy as np
import xarray as xr

from kvwstream.coefficients import per_vector
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics


def open_statistics(url: str) -> xr.Dataset:
    """What `reduce` wrote, axes `record`, `vector` and `site`; the coordinates are in memory.

    `DamageError` if no complete statistics are there. Arrays are not checked against their digests,
    `audit` does that.
    """
    location = Statistics.open(Location(url)).location
    opened: xr.Dataset = _open(location)
    coordinates = {name: opened[str(name)].load() for name in opened.coords}
    return opened.assign_coords(coordinates)


def open_store(url: str) -> xr.Dataset:
    """What `collect` wrote, all parts in one: sums (record, vector), counts (record, site).

    Withdrawn records are left out.

    Coordinates: `examples` (the ids of each record), `layer` and `channel` of each vector, `site`.
    `IncompleteError` if a part has no seal.
    """
    store = CollectStore.open(Location(url))
    store.require_sealed()
    parts = [_open(store.location.at("parts", part.name)) for part in store.parts]
    layers = np.array([site.layer for site in store.sites])
    joined: xr.Dataset = xr.concat(parts, dim="record", combine_attrs="drop")
    joined = joined.isel(record=store.records)
    return joined.assign_coords(
        examples=("record", store.record_names()),
        site=[site.path for site in store.sites],
        layer=("vector", per_vector(layers, store.widths)),
        channel=("vector", np.concatenate([np.arange(width) for width in store.widths])),
    )


def _open(location: Location) -> xr.Dataset:
    # not `group=`: xarray would read the metadata of the whole bucket
    opened: xr.Dataset = xr.open_zarr(location.zarr(), zarr_format=3)
    return opened
