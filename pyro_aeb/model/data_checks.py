# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Check, before a chain starts, that observed data are finite, in the support and scaled by N/n."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from pyro_aeb.data.finite import count_non_finite
from pyro_aeb.errors import ModelError
from pyro_aeb.model.sites import Site, check_distribution, is_masked, unwrap
from pyro_aeb.model.structure import has_weights

INDEX_ADVICE = (
    "index the data with the plate's indices, "
    "`with pyro.plate(..., subsample_size=n) as i: ... x[i] ... obs=y[i]`"
)
"""The cure for data that are not a minibatch where the plate is one."""


def check_observed(
    observed: Mapping[str, Site],
    plates: Mapping[str, tuple[int, int]],
    computed: Collection[str] = (),
) -> None:
    """
    Check that every observed site is scaled by N/n, and that its values are in its support.

    :param plates: size and subsample size of every plate made while the model runs.
    :param computed: sites whose values are computed from latent sites, which are not checked.
    :raises ModelError: if a site has another scale, or its values do not fit its distribution.
    """
    around_data = set()
    for name, site in observed.items():
        check_distribution(site)
        frames = site["cond_indep_stack"]
        around_data |= {frame.name for frame in frames}
        expected = 1.0
        for frame in frames:
            full = frame.full_size or frame.size
            expected *= full / frame.size
            if frame.size < full and frame.name not in plates:
                raise ModelError(
                    f"plate {frame.name!r} is subsampled ({frame.size} of {full}) but was made "
                    "before the model ran, so every step would see the same batch; make it inside "
                    "the model"
                )
        scale = site["scale"]
        count = torch.Size(site["fn"].batch_shape).numel()
        single = not has_weights(scale) or scale.numel() == 1 < count
        if single and abs(float(scale) / expected - 1.0) > 1e-6:
            raise ModelError(
                f"observed site {name!r} is scaled by {float(scale):g}, expected N/n = "
                f"{expected:g} from its plates; remove poutine.scale from the model (tempering is "
                "AEBKernel's inverse_temperature; weights of the data are a tensor with one for "
                "each)"
            )
        if name not in computed:
            _check_value(name, site)
    for name, (size, batch) in plates.items():
        if batch < size and name not in around_data:
            raise ModelError(
                f"plate {name!r} is subsampled ({batch} of {size}) but no observed site is inside "
                "it, so nothing is scaled by N/n; put the observed pyro.sample inside the plate"
            )


def check_lengths(
    observed: Mapping[str, Site], subsamples: Mapping[str, Site], tensors: Mapping[str, Tensor]
) -> None:
    """
    Check that no observed values are left over: data that are longer than their plate, beside other
    data that are as long, in a model that observes nothing in a plate for the rest.

    :param subsamples: the sites of the plates' indices.
    :param tensors: the model's arguments, by name.
    :raises ModelError: if there are some.
    """
    lengths = {name: len(value) for name, value in tensors.items() if value.dim()}
    of_data = {frame.name for s in observed.values() for frame in s["cond_indep_stack"]}
    sizes = {name: s["fn"].size for name, s in subsamples.items() if name in of_data}
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)
    alike: dict[torch.Size, list[str]] = {}
    for name in lengths:
        alike.setdefault(tensors[name].shape[1:], []).append(name)
    for _, site in sorted(observed.items()):
        value = site["value"]
        own = [frame.name for frame in site["cond_indep_stack"] if frame.name in subsamples]
        other = next((sizes[plate] for plate in largest if plate not in own), 0)
        for plate in own if isinstance(value, Tensor) else ():
            size, rows = sizes[plate], subsamples[plate]["value"]
            whole = next((name for name, length in lengths.items() if length == size), None)
            if whole is None:
                continue
            for name in alike.get(value.shape[1:], ()):
                data = tensors[name]
                if lengths[name] <= size + other or value.shape[:1] != rows.shape:
                    continue
                if torch.equal(data[rows.to(data.device)].to(value), value):
                    raise _left_over(name, lengths[name], plate, size, whole, tensors[whole])


def _left_over(
    name: str, length: int, plate: str, size: int, whole: str, features: Tensor
) -> ModelError:
    shape = tuple(features.shape)
    is_transposed = len(shape) == 2 and shape[1] == length
    return ModelError(
        f"{name!r} has {length} data and {whole!r} shape {shape}, so plate {plate!r}, of size "
        f"{size}, would leave out those of {name!r} from {size} on; "
        + (f"give {whole}.T" if is_transposed else f"give as many, {name}[:{size}]")
    )


def check_loader_plates(
    observed: Mapping[str, Site],
    subsamples: Mapping[str, Site],
    sizes: frozenset[int],
    lengths: Collection[int],
) -> None:
    """
    Check that plates scale a loader's batches to the size of its data set.

    :param observed: the sites that are data.
    :param subsamples: the plates made while the model runs, by name.
    :param sizes: the sizes that the data set may have; empty if unknown.
    :param lengths: of the first axes of the batch's tensors.
    :raises ModelError: if a site of the batch is in no plate of such a size, or a plate draws
        indices itself.
    """
    scaled = [name for name, site in observed.items() if _is_scaled(site, sizes)]
    for name, site in observed.items():
        plate_sizes = {f.name: f.full_size or f.size for f in site["cond_indep_stack"]}
        value = site["value"]
        axes = set(value.shape) if isinstance(value, Tensor) else set()
        if name not in scaled and (not scaled or axes & set(lengths)):
            plates = ", ".join(f"{n!r} of size {size}" for n, size in plate_sizes.items())
            raise ModelError(
                f"observed site {name!r} is inside {plates or 'no plate'}, but the DataLoader has "
                f"{_count_of_data(sizes)}, so its batches are not scaled by N/n; write "
                f'`with pyro.plate("data", {max(sizes, default="N")}, subsample=x):` around it, '
                f"where x is the batch{'' if sizes else ' and N the number of data'}"
            )
        for plate, size in plate_sizes.items():
            drawn = plate in subsamples and subsamples[plate]["fn"].subsample_size is not None
            if drawn and len(subsamples[plate]["value"]) < size and (size in sizes or not sizes):
                raise ModelError(
                    f"plate {plate!r} draws its own {len(subsamples[plate]['value'])} of {size} "
                    "indices, but the batch comes from a DataLoader, whose last batch may be "
                    f"shorter; write `pyro.plate({plate!r}, {size}, subsample=x)`, where x is the "
                    "batch"
                )


def _count_of_data(sizes: frozenset[int]) -> str:
    if not sizes:
        return "more data than one batch (their number is unknown)"
    return f"{' or '.join(map(str, sorted(sizes)))} {'datum' if sizes == {1} else 'data'}"


def _is_scaled(site: Site, sizes: frozenset[int]) -> bool:
    """Whether a plate scales an observed site's batch to the whole data set."""
    frames = site["cond_indep_stack"]
    if sizes:
        return any((frame.full_size or frame.size) in sizes for frame in frames)
    return any((frame.full_size or frame.size) > frame.size for frame in frames)


def _check_value(name: str, site: Site) -> None:
    """Check that an observed value is finite, in the support, and of the plates' shape."""
    value, fn = site["value"], site["fn"]
    if not isinstance(value, Tensor):
        return
    if bad := count_non_finite(value):
        raise ModelError(
            f"observed site {name!r} has {bad} non-finite of {value.numel()} values; remove "
            "them, or fill them with any finite number and leave them out with poutine.mask"
        )
    _check_support(name, site)
    expected = _batch_shape(site) + fn.event_shape
    sizes = zip(reversed(expected), reversed(value.shape), strict=False)
    fits = len(expected) <= value.dim() and all(size in (1, length) for size, length in sizes)
    if not fits or (site["cond_indep_stack"] and expected and value.shape != expected):
        raise ModelError(
            f"observed site {name!r} has values of shape {tuple(value.shape)}, expected "
            f"{tuple(expected)} from its distribution and plates; {_shape_advice(site, expected)}"
        )


def _shape_advice(site: Site, expected: torch.Size) -> str:
    """Return the cure for an observed value of a shape that is not expected."""
    value, fn = site["value"], unwrap(site["fn"])
    classes = fn.param_shape[-1] if isinstance(fn, torch.distributions.Categorical) else 0
    if classes and value.dim() and value.shape[-1] == classes:
        if bool((value.sum(-1) == 1).all()):
            return "it holds one-hot labels: give the numbers of the classes, obs=y.argmax(-1)"
    if len(expected) == 2 and expected[0] == expected[1] == value.numel():
        return (
            f"the distribution's parameters or the values have shape ({value.numel()}, 1), which "
            f"broadcasts with the plate's {value.numel()}: drop the last axis of both, "
            ".squeeze(-1), or make it an event of the datum, .to_event(1)"
        )
    if value.shape == (*expected, 1):
        return f"drop the last axis of the values, {site['name']}.squeeze(-1)"
    return INDEX_ADVICE


def _batch_shape(site: Site) -> torch.Size:
    """Return the shape of a site's density, also where a handler has replaced its distribution."""
    shape = list(site["fn"].batch_shape)
    for frame in site["cond_indep_stack"]:
        if frame.vectorized:
            shape = [1] * (-frame.dim - len(shape)) + shape
            shape[frame.dim] = max(shape[frame.dim], frame.size)
    return torch.Size(shape)


def _check_support(name: str, site: Site) -> None:
    """Check that an observed value is in its distribution's support."""
    fn, value = site["fn"], site["value"]
    if is_masked(site):  # masked values may be outside
        return
    try:
        inside = fn.support.check(value)
    except (NotImplementedError, RuntimeError):  # no support, or values of another shape
        return
    if not bool(inside.all()):
        bad = value[~inside] if inside.shape == value.shape else value
        raise ModelError(
            f"observed site {name!r} ~ {type(unwrap(fn)).__name__} has values outside its support "
            f"{fn.support}, {bad.reshape(-1)[0].item():g} among them; look at the data's coding "
            "(classes count from 0) and at the shape of the distribution's parameters"
        )
