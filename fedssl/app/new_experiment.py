"""The text of a new experiment file: settings that run at once, with comments on what was found and what to change."""

import textwrap

import tomli_w

from fedssl.core.text import one_line
from fedssl.data.survey import Survey

LARGEST_SIDE = 32
"""Images are scaled to at most this side, unless all have one size that is at most twice as large, so that a first run
on a CPU takes minutes and not hours."""

LEAST_SIDE = 8
"""Images are not scaled below this side (pixels)."""

LEAST_IMAGES = 20
"""A federation gets so many clients that each has at least this many images on average."""

MOST_CLIENTS, MOST_SAMPLED = 10, 5
"""A federation has at most this many clients, of which this many are sampled in a round, unless the user says."""

MOST_LISTED = 12
"""A comment lists at most this many classes or sites."""

CHANNEL_NAMES = {1: "gray", 3: "color"}


def text_of_experiment(
    name: str, method: str, clients: int | None, source: str, found: Survey | None
) -> str:
    """Return the text of an experiment file.

    Args:
        name: Name of the experiment.
        method: Kind of the method.
        clients: Number of clients; None: as fits the data.
        source: The source of the user's images; not used without them.
        found: What the user's images are; None: the digits that fedssl contains are used.
    """
    data = _digits() if found is None else _own_images(source, found)
    return f"""\
# An experiment of fedssl. `fedssl explain` lists the sections, `fedssl explain train` tells what their settings mean.
{_setting("name", name)}
rounds = 40

{data}

{_federation(clients, found)}

[method]
{_setting("kind", method)}{_note("how clients learn; fedssl list methods shows all, supervised uses no unlabeled images")}

[train]
local_steps = 10{_note("steps of a client in a round")}
lr = 0.02
schedule = "cosine"

# To choose settings, hold training images out and leave the test images alone: validation = 0.2 under [data].
"""


def _digits() -> str:
    return """\
[data]
source = "digits" # 1,797 images of 8x8 pixels that fedssl contains; your own: fedssl new --data PATH"""


def _own_images(source: str, found: Survey) -> str:
    """Return the section [data] for a user's own images."""
    counts = [f"{one_line(name)} {count:,}" for name, count in found.class_counts.items()]
    test = (
        f"{found.num_test:,} test images of their own"
        if found.num_test
        else "a fifth of them becomes test images (test_share)"
    )
    facts = [
        f"{len(counts)} classes: {_listed(counts)}.",
        f"{found.num_labeled:,} images have a class, {found.num_unlabeled:,} have none; {test}.",
    ]
    if found.unreadable:
        names = one_line(", ".join(found.unreadable[:3]))
        facts.append(
            f'{len(found.unreadable)} files cannot be opened, such as {names}: remove them, or set bad_images = "skip".'
        )
    comment = "\n".join(_comment(fact) for fact in facts)
    lines = [comment, _setting("source", source), *_size(found), *_channels(found)]
    return "[data]\n" + "\n".join(lines)


def _size(found: Survey) -> list[str]:
    """Return the setting of the size, if images must be scaled."""
    (height, width), *others = sorted(found.sizes)
    if not others and (not found.can_convert or max(height, width) <= 2 * LARGEST_SIDE):
        return [_comment(f"All images have {height}x{width} pixels.")]
    side = max(LEAST_SIDE, min(found.usual_side, LARGEST_SIDE))
    last = sorted(found.sizes)[-1]
    what = f"{height}x{width} to {last[0]}x{last[1]}" if others else f"{height}x{width}"
    return [f"size = {side}{_note(f'images have {what} pixels and are scaled; larger is slower')}"]


def _channels(found: Survey) -> list[str]:
    """Return the setting of the channels, if images must be converted."""
    if len(found.channels) == 1 and next(iter(found.channels)) in CHANNEL_NAMES:
        (channels,) = found.channels
        return [_comment(f"All images are {CHANNEL_NAMES[channels]}.")]
    if not found.can_convert:
        return [_comment(f"All images have {next(iter(found.channels))} channels.")]
    kinds = ", ".join(
        f"{count:,} {CHANNEL_NAMES.get(channels, f'with {channels} channels')}"
        for channels, count in sorted(found.channels.items())
    )
    return [f"channels = 3{_note(f'images are converted to color; found: {kinds}')}"]


def _federation(clients: int | None, found: Survey | None) -> str:
    """Return the section [federation]: sites of the data as clients, or clients with skewed classes."""
    if found is not None and found.sites:
        clients = clients or len(found.sites)
        sites = [f"{one_line(site)} {count:,}" for site, count in found.sites.items()]
        head = [_comment(f"Folders below the classes look like sites: {_listed(sites)}.")]
        partition = 'partition = { kind = "natural", column = "folder" }' + _note(
            "each site is a client, or a part of one"
        )
    else:
        images = 1000 if found is None else found.num_labeled + found.num_unlabeled
        clients = clients or max(2, min(MOST_CLIENTS, images // LEAST_IMAGES))
        head = []
        partition = 'partition = { kind = "dirichlet", alpha = 0.5 }' + _note(
            'a smaller alpha makes clients differ more; "iid": not at all'
        )
    lines = [
        *head,
        f"clients = {clients}{_note('K')}",
        f"sample = {min(clients, MOST_SAMPLED)}{_note('m of K clients train in each round')}",
        partition,
        _labels(found),
    ]
    return "[federation]\n" + "\n".join(lines)


def _labels(found: Survey | None) -> str:
    """Return the setting of the labels: those that the data has, or a small part of them."""
    if found is None:
        return 'labels = { kind = "at_clients", per_class = 4 }' + _note(
            "labeled images of each class, over all clients"
        )
    if found.num_unlabeled:
        return 'labels = { kind = "at_clients", per_class = "all" }' + _note(
            'all labels that the images have; kind = "at_server" puts them at the server'
        )
    return 'labels = { kind = "at_clients", fraction = 0.1 }' + _note(
        'all images have a class; a tenth keeps it, per_class = "all" keeps all'
    )


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - MOST_LISTED} more" if len(items) > MOST_LISTED else ""
    return ", ".join(items[:MOST_LISTED]) + more


def _setting(key: str, value: str) -> str:
    return tomli_w.dumps({key: value}).rstrip("\n")


def _note(text: str) -> str:
    """Return a comment behind a setting."""
    return f"  # {text}"


def _comment(text: str) -> str:
    """Return a comment on lines of its own."""
    return textwrap.fill(text, 100, initial_indent="# ", subsequent_indent="# ")
