"""Everything that touches Zarr: layout, parts and their seals, digests, xarray views."""
