"""transformers' own ways to generate, with a policy attached: docs/transformers.md, line by line."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
import transformers
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StaticCache,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)

from dyvte import FixedExit, LearnedExit, NoExit, attach
from dyvte.decoding.attach import handle_of
from dyvte.decoding.cache.ragged import RaggedCache
from tests.conftest import MIXED, Prompts, tiny_hf_llava
from tests.families.cases import CASES
from tests.families.test_families import Prompts as FamilyPrompts
from tests.fixtures.devices import OTHER, SecondDevice, place
from tests.fixtures.processors import tokenizer

GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
THREE = Prompts(MIXED[4], MIXED[1], MIXED[3]).hf()  # one image, two images, none; padded on the left
NOT_AVAILABLE = "is not available while a policy is attached, because"


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def handle(hf_llava, gates):
    with attach(hf_llava, LearnedExit(gates)) as handle:
        yield handle


@pytest.fixture
def plain(hf_llava, handle):
    """What ``generate`` gives with the policy, and the exits."""
    tokens = hf_llava.generate(**THREE, **GREEDY)
    (trace,) = handle.traces
    handle.traces.clear()
    return tokens, trace.exit_layers


def test_the_prompts_exit_at_different_layers(plain):
    assert len(set(plain[1])) > 1


@pytest.mark.parametrize(
    "ways",
    [
        {"cache_implementation": "dynamic"},
        {"generation_config": GenerationConfig(**GREEDY)},
        {"logits_processor": LogitsProcessorList()},
        {"num_beams": 1},
    ],
    ids=lambda ways: next(iter(ways)),
)
def test_equal_to_plain_decoding(hf_llava, handle, plain, ways):
    more = {} if "generation_config" in ways else GREEDY
    assert torch.equal(hf_llava.generate(**THREE, **more, **ways), plain[0])
    assert [trace.exit_layers for trace in handle.traces] == [plain[1]]


def test_without_a_cache_every_step_decides_as_the_first(hf_llava, handle, plain):
    """Tokens of the answer are none that gates look at."""
    assert torch.equal(hf_llava.generate(**THREE, **GREEDY, use_cache=False), plain[0])
    assert [trace.exit_layers for trace in handle.traces] == [plain[1]] * GREEDY["max_new_tokens"]


def test_the_tower_counts_where_generate_encodes_images_first(hf_llava, handle):
    hf_llava(**THREE)
    hf_llava.get_image_features(THREE["pixel_values"])  # not of the prompt
    hf_llava.generate(**THREE, **GREEDY)
    forward, generated = handle.traces
    assert generated.vision_flops == forward.vision_flops > 0


def test_processors_criteria_and_scores(hf_llava, handle, plain):
    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([input_ids.shape[1]]), 0.0)

    start = THREE["input_ids"].shape[1]
    forced = hf_llava.generate(**THREE, **GREEDY, logits_processor=LogitsProcessorList([Only()]))
    assert forced[:, start:].tolist() == [list(range(start, start + GREEDY["max_new_tokens"]))] * 3
    stop = StoppingCriteriaList([MaxLengthCriteria(start + 2)])
    assert torch.equal(hf_llava.generate(**THREE, **GREEDY, stopping_criteria=stop), plain[0][:, : start + 2])
    out = hf_llava.generate(**THREE, **GREEDY, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(torch.stack(out.scores).argmax(-1).T, out.sequences[:, start:])
    assert torch.equal(out.sequences, plain[0]) and isinstance(out.past_key_values, RaggedCache)
    best = hf_llava.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    torch.testing.assert_close(best, torch.stack(out.scores).log_softmax(-1).amax(-1).T)


def test_several_sequences_for_a_prompt_decide_alike(hf_llava, handle, plain, caplog):
    sampled = {**GREEDY, "do_sample": True, "num_return_sequences": 2}
    if transformers.__version__.startswith(("5.17.", "5.18.")):  # which give a copy the images of another
        hf_llava.generate(**THREE, **sampled)
        assert "5.19 does not" in caplog.text
        return
    assert len(hf_llava.generate(**THREE, **sampled)) == 6
    beams = hf_llava.generate(**THREE, **GREEDY, num_beams=3, num_return_sequences=2)
    assert len(beams) == 6
    exits = [[layer for layer in plain[1] for _ in range(count)] for count in (2, 3)]
    assert [trace.exit_layers for trace in handle.traces] == exits


def test_a_streamer_gets_the_tokens_of_another_thread(hf_llava, handle):
    inputs = Prompts(MIXED[0]).hf()
    words = tokenizer()
    streamer = TextIteratorStreamer(words, skip_prompt=True, timeout=60)
    options = {**inputs, **GREEDY, "streamer": streamer}
    thread = Thread(target=lambda: hf_llava.generate(**options))
    thread.start()
    text = "".join(streamer)
    thread.join()
    expected = hf_llava.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    assert text == words.decode(expected)


def test_threads_get_their_own_answers(hf_llava, handle):
    def ask(inputs):
        with torch.no_grad(), handle.collect() as traces:
            tokens = hf_llava.generate(**inputs, **GREEDY)
        (trace,) = traces
        return tokens.tolist(), trace.exit_layers

    inputs = [Prompts(prompt).hf() for prompt in MIXED]
    alone = [ask(one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, inputs * 3)) == alone * 3


def test_a_second_turn_decides_on_what_is_new(hf_llava, handle, plain):
    """``generate`` may get the whole chat or, with the mask of all, the new tokens: equal to forwards by hand."""
    first = hf_llava.generate(**THREE, **GREEDY, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[50, 51, 52]] * 3)], 1)
    mask = torch.cat([THREE["attention_mask"], torch.ones_like(ids[:, THREE["input_ids"].shape[1] :])], 1)
    held = first.past_key_values
    new = ids[:, held.columns :]
    by_hand = (
        hf_llava(input_ids=new, attention_mask=mask, past_key_values=copy.deepcopy(held))
        .logits[:, -1]
        .argmax(-1)
    )
    for given in (ids, new):
        cache = copy.deepcopy(held)
        more = hf_llava.generate(input_ids=given, attention_mask=mask, past_key_values=cache, **GREEDY)
        assert torch.equal(more[:, given.shape[1]], by_hand)
        assert cache.get_seq_length() == ids.shape[1] + GREEDY["max_new_tokens"] - 1
        assert handle.traces[-1].prompt_tokens == [new.shape[1]] * 3


def test_an_image_of_a_later_turn_needs_the_whole_chat_where_its_tokens_see_each_other():
    case = CASES["gemma3, window 7"]
    model, inputs = case.build().eval(), FamilyPrompts(case).inputs(0)
    with attach(model, FixedExit(0)):
        cache = model(**inputs).past_key_values
        text = torch.tensor([[20, 21, 22]])
        model(input_ids=text, token_type_ids=torch.zeros_like(text), past_key_values=cache)
        with pytest.raises(ValueError, match="give the whole chat at once, without a cache"):
            model(**{**inputs, "attention_mask": None}, past_key_values=cache)


def test_a_dynamic_cache_that_is_passed_is_filled(hf_llava, handle, plain):
    """The documented chat loop keeps its own cache, and hands it in again."""
    cache = DynamicCache(config=hf_llava.config)
    tokens = hf_llava.generate(**THREE, **GREEDY, past_key_values=cache)
    assert torch.equal(tokens, plain[0])
    assert cache.get_seq_length() == tokens.shape[1] - 1
    by_hand = DynamicCache()
    hf_llava(**THREE, past_key_values=by_hand)
    assert by_hand.get_seq_length() == THREE["input_ids"].shape[1]
    step = hf_llava(input_ids=plain[0][:, [THREE["input_ids"].shape[1]]], past_key_values=by_hand)
    assert torch.equal(step.logits[:, -1].argmax(-1), plain[0][:, THREE["input_ids"].shape[1] + 1])


@pytest.mark.parametrize(
    "kind",
    [
        lambda config: StaticCache(config=config, max_cache_len=64),
        lambda config: DynamicCache(config=config, offloading=True),
    ],
    ids=["static", "offloaded"],
)
def test_a_cache_that_cannot_be_ragged_is_refused(hf_llava, handle, kind):
    for call in (hf_llava, lambda **inputs: hf_llava.generate(**inputs, **GREEDY)):
        with pytest.raises(ValueError, match=r"this \w+Cache cannot hold( offloaded)?: leave it out"):
            call(**THREE, past_key_values=kind(hf_llava.config.text_config))


@pytest.mark.parametrize("kind", ["static", "offloaded", "offloaded_static", "quantized", "paged"])
def test_cache_implementations_are_refused_by_name(hf_llava, handle, kind):
    with pytest.raises(ValueError, match=f"cache_implementation='{kind}' {NOT_AVAILABLE}"):
        hf_llava.generate(**THREE, **GREEDY, cache_implementation=kind)
    with pytest.raises(ValueError, match=f"cache_implementation='{kind}' {NOT_AVAILABLE}"):
        config = GenerationConfig(**GREEDY, cache_implementation=kind)
        hf_llava.generate(**THREE, generation_config=config)


def test_what_needs_parts_of_a_prompt_or_of_the_layers_is_refused(hf_llava, handle):
    for asked in ({"prefill_chunk_size": 4}, {"assistant_early_exit": 2}):
        (name,) = asked
        with pytest.raises(ValueError, match=f"{name} {NOT_AVAILABLE}"):
            hf_llava.generate(**THREE, **GREEDY, **asked)
    with pytest.raises(ValueError, match=rf"continuous batching \(generate_batch\) {NOT_AVAILABLE}"):
        hf_llava.generate_batch([[1, 5, 6]], max_new_tokens=2)
    handle.detach()
    assert not {"generate", "init_continuous_batching"} & vars(hf_llava).keys()


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_outputs_of_stock_layers_are_refused(hf_llava, handle, name, monkeypatch):
    with pytest.raises(ValueError, match=f"{name} is not available"):
        hf_llava.generate(**THREE, **GREEDY, return_dict_in_generate=True, **{name: True})
    monkeypatch.setitem(vars(hf_llava.config.text_config), name, True)
    monkeypatch.setitem(vars(hf_llava.config.text_config), f"_{name}", True)
    with pytest.raises(ValueError, match=f"{name} of the config is not available"):
        hf_llava(**THREE)


def test_a_mask_between_tokens_is_refused(hf_llava, llava, handle):
    columns = THREE["input_ids"].shape[1]
    mask = torch.ones(3, 1, columns, columns).tril().bool()
    with pytest.raises(ValueError, match=r"attention_mask must be \(batch, tokens\).*\(3, 1"):
        hf_llava(**{**THREE, "attention_mask": mask})
    with (
        attach(llava, NoExit()),
        pytest.raises(ValueError, match=r"attention_mask must be \(batch, tokens\)"),
    ):
        llava(input_ids=torch.ones(3, columns, dtype=torch.long), attention_mask=mask)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_a_handle_of_its_own(gates, copied):
    """Not the session's model: transformers itself cannot pickle one whose tower has run."""
    model = tiny_hf_llava()
    with attach(model, LearnedExit(gates)) as handle:
        other = copied(model)
        expected = model.generate(**THREE, **GREEDY)
        assert torch.equal(other.generate(**THREE, **GREEDY), expected)
    own = handle_of(other)
    assert own is not None and own is not handle and own.policy.gates is not gates
    assert [trace.exit_layers for trace in own.traces] == [handle.traces[-1].exit_layers]
    assert len(handle.traces) == 1 and own.traces[0].vision_flops == handle.traces[0].vision_flops > 0
    own.detach()
    assert handle_of(other) is None and torch.equal(
        other.generate(**THREE, **GREEDY), model.generate(**THREE, **GREEDY)
    )


@pytest.mark.parametrize("name", ["gemma3, window 7", "qwen2_5_vl", "granite4_vision"])
def test_families_with_stacks_of_their_own_can_be_copied(name):
    case = CASES[name]
    model = case.build().eval()
    with attach(model, FixedExit(0)):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert handle_of(other).policy == FixedExit(0)


def test_a_model_inside_peft(gates, hf_llava, plain):
    """Wrapped before or after; fresh adapters change nothing."""
    lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(tiny_hf_llava(), lora)
    model = tiny_hf_llava()
    for attached, asked in ((wrapped, wrapped), (model, lambda: get_peft_model(model, lora))):
        with attach(attached, LearnedExit(gates)) as handle:
            asked = asked if asked is wrapped else asked()
            assert torch.equal(asked.generate(**THREE, **GREEDY), plain[0])
            assert [trace.exit_layers for trace in handle.traces] == [plain[1]]
            assert handle_of(wrapped) is (handle if attached is wrapped else None)


def test_gates_follow_a_model_that_is_moved(hf_llava, gates, plain):
    """To another device, and to another precision."""
    model, own = tiny_hf_llava(), copy.deepcopy(gates)
    with attach(model, LearnedExit(own)) as handle:
        model.to(torch.bfloat16)
        pixels = THREE["pixel_values"].to(torch.bfloat16)
        model.generate(**{**THREE, "pixel_values": pixels}, **GREEDY)
        assert handle.run.dtype == "bfloat16" and handle.traces[-1].report()[0].run.dtype == "bfloat16"
    model, own = tiny_hf_llava(), copy.deepcopy(gates)
    decoder = model.model.language_model
    with attach(model, LearnedExit(own)) as handle, SecondDevice():
        for part in (*decoder.layers[1:], decoder.norm, model.lm_head):
            place(part, OTHER)
            add_hook_to_module(part, AlignDevicesHook(OTHER))
        add_hook_to_module(model, AlignDevicesHook(io_same_device=True))
        assert torch.equal(model.generate(**THREE, **GREEDY), plain[0])
        assert [trace.exit_layers for trace in handle.traces] == [plain[1]]
        assert [gate.w2.weight.device for gate in own.layers] == [torch.device("cpu")] + [OTHER] * 3


@pytest.mark.parametrize("first", ["attached", "offloaded"])
def test_weights_that_are_offloaded(gates, plain, first):
    model = tiny_hf_llava()
    if first == "offloaded":
        cpu_offload(model, torch.device("cpu"))
    with attach(model, LearnedExit(gates)) as handle:
        if first == "attached":
            cpu_offload(model, torch.device("cpu"))
        assert torch.equal(model.generate(**THREE, **GREEDY), plain[0])
        assert [trace.exit_layers for trace in handle.traces] == [plain[1]]


def test_pipelines(llava_hf):
    """Alone and in batches, with the answers of ``generate``."""
    model = AutoModelForImageTextToText.from_pretrained(llava_hf, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(llava_hf)
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "white")]
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        for image, text in zip(images, ("what is it", "which color does it have"), strict=True)
    ]
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    with attach(model, FixedExit(1)) as handle:
        expected = []
        for chat in chats:
            inputs = processor.apply_chat_template(
                chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            tokens = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
            expected.append(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
        ask = pipeline("image-text-to-text", model=model, processor=processor)
        handle.traces.clear()
        for size in (1, 2):
            answers = ask(text=chats, batch_size=size, return_full_text=False, generate_kwargs=options)
            assert [answer[0]["generated_text"].strip() for answer in answers] == expected
        assert [trace.exit_layers for trace in handle.traces] == [[1], [1], [1, 1]]
