"""The sites of a simulation: named clients, each with a folder or an npz file of its own, as deployed clients have them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from fedssl.core.errors import InputError
from fedssl.core.registry import Section
from fedssl.data.cache import Prepared
from fedssl.data.images import Dataset, Images, Rows, join_images
from fedssl.data.private import prepare_private
from fedssl.data.target import Reading
from fedssl.data.terms import Terms

NPZ = ".npz"
"""A site's file of arrays has a name with this ending, as a deployed client's has."""


FORM = "a site is 'folder:PATH' or 'npz:PATH'"


class Site(Section):
    """One of the ``[federation.sites]``: the images of one client. A text is short for a site with that source."""

    source: str = Field(description="folder:PATH or npz:PATH, the client's own images and labels")
    bad_images: Literal["refuse", "skip"] = Field(
        "refuse",
        description="what to do with images that cannot be read: refuse stops with a message, skip leaves them out",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | Site):
            raise ValueError(f"is {value!r}; {FORM}")
        return {"source": value} if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        kind, _, path = value.partition(":")
        if kind not in ("folder", "npz") or not path:
            raise ValueError(FORM)
        if (kind == "npz") != path.lower().endswith(NPZ):
            raise ValueError(f"a name that ends in {NPZ} is an npz file, and no other name is")
        return value

    @property
    def path(self) -> str:
        """The path of the folder or file."""
        return self.source.partition(":")[2]


Sites = Mapping[str, Site]


def check_names(sites: Sites) -> None:
    """Raise `ValueError` if there is no site, a name cannot be shown, or two sites have the same images."""
    if not sites:
        raise ValueError("there is no site; name one at least, or drop the table")
    for name in sites:
        if not name.strip() or not name.isprintable():
            raise ValueError(f"{name!r} cannot be the name of a site: use letters and digits")
    places: dict[Path, str] = {}
    for name, site in sites.items():
        other = places.setdefault(_place(site.path), name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} are the same images, {site.path}; drop one of them"
            )


def prepare_sites(
    sites: Sites, data: Dataset, reading: Reading, *, verify: bool = False
) -> list[Prepared]:
    """Return the cache entry of each site's images, in the order of the sites; it is the entry of a deployed client.

    Args:
        sites: The sites by name.
        data: The server's data set, which sets shape, classes and normalization.
        reading: How files become images of 8 bits, as the server's files do.
        verify: Whether to compare checksums too.

    Raises:
        InputError: A site's images do not fit, or the server has no class of theirs; names the site.
    """
    terms = Terms.of(data)
    prepared = []
    for name, site in sites.items():
        skip = site.bad_images == "skip"
        try:
            entry = prepare_private(
                site.path, terms, reading, skip=skip, switch=_switch(name), verify=verify
            )
        except InputError as error:
            raise InputError(f"federation.sites.{name}", error.problem, error.remedy) from None
        prepared.append(entry)
    return prepared


def refuse_leak(sites: Sites, source: str, *, has_test: bool) -> None:
    """Refuse a site that trains on the images that the server tests on.

    Args:
        sites: The sites by name.
        source: Path of the server's data; empty if it is no path.
        has_test: Whether the server's data has test images of its own, which no site trains on.

    Raises:
        InputError: A site is the server's own data, and the test images are a share of it.
    """
    for name, site in sites.items():
        if source and not has_test and _place(site.path) == _place(source):
            raise InputError(
                f"federation.sites.{name}",
                "is the data of [data] too, so this site trains on the images that the server tests on",
                "put images to test on into a folder 'test' beside 'train', or give [data] images of its own",
            )


def join_sites(data: Dataset, sites: Sites, prepared: list[Prepared]) -> tuple[Dataset, Rows]:
    """Return the server's data set with the training images of all sites behind its own, and the site of each of these.

    Args:
        data: The server's data set.
        sites: The sites by name.
        prepared: The cache entry of each site's images.

    Returns:
        The data set with N + n training images, and the number of the site of each of the last n, int64 (n,).
    """
    own = [_part(entry, "train") for entry in prepared]
    numbers = np.repeat(np.arange(len(own)), [len(images) for images in own])
    joined = replace(
        data,
        train=join_images([data.train, *own]),
        column_values={},
        notes=(*data.notes, *_said("notes", sites, prepared)),
        remarks=(*data.remarks, *_said("remarks", sites, prepared)),
    )
    return joined, numbers


def held_out_of(prepared: list[Prepared]) -> tuple[Images, ...]:
    """Return the images that each site evaluates on: its part ``test``, or no images."""
    return tuple(
        _part(entry, "train").take(np.empty(0, np.int64))
        if (test := entry.part("test")) is None
        else test
        for entry in prepared
    )


def _said(key: str, sites: Sites, prepared: list[Prepared]) -> list[str]:
    """Return the sentences on how each site's images were read, or on what was left out, with the site's name before each."""
    entries = zip(sites, prepared, strict=True)
    return [f"site {name}: {said}" for name, entry in entries for said in entry.meta[key]]


def _part(entry: Prepared, name: str) -> Images:
    images = entry.part(name)
    assert images is not None
    return images


def _place(path: str) -> Path:
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError:  # the system does not know the user; reading the images will tell
        return Path(path)


def _switch(name: str) -> str:
    return f"federation.sites.{name}.bad_images = 'skip'"
