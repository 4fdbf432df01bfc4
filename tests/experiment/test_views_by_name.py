"""A file may define any view, a method may ask for any, and both are compared before anything runs."""

import pytest
import torch

from fedssl.augment.base import AUGMENTATIONS
from fedssl.augment.ctaugment import CTAugment
from fedssl.augment.policy import DEFAULT_KINDS, Augment, family_of_view
from fedssl.core import rng
from fedssl.core.errors import InputError
from fedssl.core.trust import Trust, trusting
from fedssl.experiment.client_settings import ClientSettings
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.families import PLUGIN_SECTIONS, family_at
from fedssl.methods.base import Views
from fedssl.training.batches import BatchLoader, default_pools
from tests.fused import shards
from tests.helpers import fedssl, small_experiment

ASKS = {"kind": "supervised", "labeled_view": "mine"}
NOISE = {"kind": "noise", "std": 0.5}


def experiment(**sections):
    return Experiment.from_dict({"data": "digits", "method": ASKS, **sections})


def test_any_name_is_a_section_with_a_kind():
    found = experiment(augment={"mine": NOISE, "weak": "identity"})
    assert found.augment.policy_of("mine").std == 0.5
    assert found.to_dict()["augment"]["mine"] == NOISE
    assert Experiment.from_dict(found.to_dict()) == found
    assert ClientSettings.from_json(found.to_client_json()).augment == found.augment
    assert "[augment.mine]" in found.to_toml()
    assert experiment(augment={"mine": "noise"}).augment.policy_of("mine").std == 0.1


def test_three_views_have_a_default():
    own = Augment()
    assert {name: policy.kind for name, policy in own.policies.items()} == DEFAULT_KINDS
    for name, kind in DEFAULT_KINDS.items():
        assert PLUGIN_SECTIONS[f"augment.{name}"].default == kind
        assert family_at(f"augment.{name}").default == kind
    assert family_at("augment.mine").default is None
    assert family_at("augment") is family_at("augment.mine.weak") is None


def test_a_setting_of_the_command_line_reaches_any_view():
    found = experiment(augment={"mine": NOISE})
    louder = found.with_settings("augment.mine.std=0.7")
    assert louder.augment.policy_of("mine").std == 0.7
    other = found.with_settings("augment.mine.kind=rotation")  # std means nothing to a rotation
    assert other.augment.policy_of("mine").kind == "rotation"
    gone = found.with_settings("augment.mine=unset", "method.labeled_view=weak")
    assert not gone.augment.own_views


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"mine": {"std": 1}}, r"augment\.mine\.kind: is missing; one of: color_jitter"),
        (
            {"mine": {"kind": "noise", "sdt": 1}},
            r"augment\.mine\.sdt: unknown key; did you mean 'std'",
        ),
        (
            {"mine": {"kind": "noize"}},
            r"augment\.mine\.kind: there is no augmentation 'noize'; did you",
        ),
        ({"mine": {"kind": "noise", "std": -1}}, r"augment\.mine\.std: is -1"),
        ({"mine": 3}, r"augment\.mine: is 3, not a table"),
        ({"mine": "noise", "not a name": "weak"}, r"augment\.not a name: is not a name for a view"),
        (
            {"mine": "noise", "plain": "weak"},
            r"augment\.plain: the plain view is the image as it is",
        ),
        (
            {},
            r"augment\.mine: method supervised asks for views 'mine', and no section defines them; add "
            r"\[augment\.mine\] with a kind, or ask for one of: contrast, plain, strong, weak",
        ),
        (
            {"mine": "noise", "stong": "weak"},
            r"augment\.stong: no method asks for this view \(methods: supervised\); drop the section, or "
            r"correct its name: did you mean 'strong'\?",
        ),
    ],
)
def test_what_is_wrong_with_a_view_is_one_clear_error(augment, words):
    with pytest.raises(InputError, match=words):
        experiment(augment=augment)


@pytest.mark.parametrize("name", ["a b", "../x", "a.b"])
def test_no_section_is_proposed_for_a_view_that_no_section_can_define(name):
    with pytest.raises(
        InputError, match=r"defines them; ask for one of: contrast, plain, strong, weak$"
    ):
        experiment(method={"kind": "supervised", "labeled_view": name})


def test_validate_refuses_a_view_that_no_section_defines(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('data = "digits"\nmethod = { kind = "supervised", labeled_view = "mine" }\n')
    answer = fedssl("validate", path)
    assert answer.exit_code == 2
    assert "method supervised asks for views 'mine'" in " ".join(answer.output.split())


def test_every_phase_is_compared_with_its_own_views():
    weak = {"kind": "supervised"}
    good = [{"rounds": 1}, {"rounds": 1, "method": ASKS, "augment": {"mine": NOISE}}]
    found = experiment(method=weak, phases=good)
    assert "mine" in found.plans[1].augment.policies
    assert "mine" not in found.plans[0].augment.policies
    with pytest.raises(InputError, match=r"^phases\[1\]\.augment\.mine: method supervised asks"):
        experiment(method=weak, phases=[{"rounds": 1}, {"rounds": 1, "method": ASKS}])
    with pytest.raises(InputError, match=r"^phases\[0\]\.augment\.other: no method asks"):
        experiment(method=weak, phases=[{"rounds": 1, "augment": {"other": NOISE}}, good[1]])
    shared = [{"rounds": 1, "method": weak}, {"rounds": 1}]  # one phase that uses it is enough
    assert experiment(augment={"mine": NOISE}, phases=shared)


def test_the_servers_method_may_ask_for_a_view_too():
    labels = {"labels": {"kind": "at_server", "per_class": 4}}
    table = {"method": {"kind": "fixmatch"}, "server": {"method": ASKS}, "federation": labels}
    assert experiment(**table, augment={"mine": NOISE})
    with pytest.raises(InputError, match=r"augment\.mine: method supervised asks"):
        experiment(**table)


def test_views_that_hooks_show_are_asked_for_by_name():
    assert Views((), ("weak", "plain"), others=("mine",)).names == {"weak", "mine"}


def test_a_method_that_was_not_imported_may_ask_for_anything():
    """A record is read without its code, and says nothing of the views that the code asks for."""
    table = small_experiment().to_dict() | {"method": {"kind": "nowhere.at_all"}}
    table["augment"] = {"mine": NOISE}
    with trusting(Trust((), keeps_tables=True)):
        assert "mine" in Experiment.from_dict(table).augment.policies


def test_a_view_of_a_stranger_keeps_its_table():
    table = small_experiment(method=ASKS, augment={"mine": NOISE}).to_dict()
    table["augment"]["mine"] = {"kind": "nowhere.at_all", "own": [1]}
    with trusting(Trust((), keeps_tables=True)):
        found = Experiment.from_dict(table)
    assert found.to_dict()["augment"]["mine"] == {"kind": "nowhere.at_all", "own": [1]}


def test_the_schema_describes_any_view():
    schema = Augment.model_json_schema()["additionalProperties"]
    tables = {way["title"] for way in schema["anyOf"] if way["type"] == "object"}
    assert tables == set(AUGMENTATIONS.names())


def test_the_same_augmentation_under_another_name_gives_the_same_batches():
    """A view's random stream follows its place among the views, as before views had names of the file's own."""
    (shard, *_), seen = shards(), []
    for view, augment in (
        ("strong", Augment()),
        ("mine", Augment.model_validate({"mine": "randaugment"})),
    ):
        views = Views(("weak",), ("weak", view), ratio=2)
        stream = lambda purpose: rng.make_generator(1, purpose, client=0)  # noqa: E731
        loader = BatchLoader(shard, default_pools(shard), views, augment, {}, 3, 4, stream)
        seen.append([*loader])
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one.unlabeled[1], other.unlabeled[1])
        assert torch.equal(one.labeled[0], other.labeled[0])


def test_two_contrastive_views_differ():
    (shard, *_) = shards()
    stream = lambda purpose: rng.make_generator(1, purpose, client=0)  # noqa: E731
    views = Views((), ("contrast", "contrast"))
    loader = BatchLoader(shard, default_pools(shard), views, Augment(), {}, 3, 2, stream)
    for batch in loader:
        assert not torch.allclose(*batch.unlabeled)


def test_an_augmentation_learns_under_any_name():
    augment = Augment.model_validate({"mine": {"kind": "ctaugment", "scope": "server"}})
    assert [(slot.name, slot.scope) for slot in augment.slots()] == [("augment.mine", "server")]
    (shard, *_) = shards()
    state = {"augment.mine": CTAugment().initial()}
    stream = lambda purpose: rng.make_generator(1, purpose, client=0)  # noqa: E731
    views = Views(("weak",), ("mine",))
    loader = BatchLoader(shard, default_pools(shard), views, augment, state, 3, 2, stream)
    assert [set(batch.probes) for batch in loader] == [{"augment.mine"}] * 2


def test_a_client_that_is_asked_for_an_unknown_view_says_so():
    with pytest.raises(InputError, match=r"augment\.mine: a method asks for this view"):
        Augment().policy_of("mine")


def test_the_family_of_a_view_names_its_place():
    assert family_of_view("mine").section == "augment.mine"
