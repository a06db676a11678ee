"""What cannot have exits says why, and the page about families is what the code says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import transformers
from transformers.models.auto import modeling_auto

from dyvte.families.base import _ADAPTERS, REFUSED, adapter_for
from tests.families import table


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_refused_types_say_why(model_type):
    model = SimpleNamespace(config=SimpleNamespace(model_type=model_type))
    with pytest.raises(ValueError) as caught:
        adapter_for(model)
    assert (
        str(caught.value)
        == f"exits are not available for models of type {model_type!r}: {REFUSED[model_type]}"
    )


def test_every_type_of_transformers_has_an_adapter_or_a_reason():
    known = {*_ADAPTERS, *REFUSED}
    unknown = set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - known
    newest = tuple(map(int, transformers.__version__.split(".")[:2])) > (5, 23)
    assert newest or not unknown, "decide about them: an adapter in dyvte/families, or a reason in refused.py"
    assert not REFUSED.keys() & _ADAPTERS.keys()
    assert set(table.SPECIAL) <= {*_ADAPTERS}


def test_the_page_about_families_is_current():
    assert set(table.sources()) == set(table.model_types()), "each family is in a file of its own"
    assert table.PAGE.read_text(encoding="utf-8") == table.render(), "run python -m tests.families.table"
