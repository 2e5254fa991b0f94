# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A conversation with a trained run, token by token."""

from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import queue
import re
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.core import observe
from moe_peft.core import trainable
from moe_peft.data import converters
from moe_peft.data import example_ids
from moe_peft.data import prompts as prompts_lib
from moe_peft.data import token_texts
from moe_peft.routers import usage
from moe_peft.training import compilation
from moe_peft.training import restored
from moe_peft.training import run

# Lengths of prompts are multiples of it: each one is a program to compile.
_LENGTH_STEP = 64


class Chatter:
  """The newest checkpoint of the configured run, which answers.

  Attributes:
    messages: What was said so far.
  """

  def __init__(
      self,
      max_tokens: int | None = None,
      temperature: float = 0.0,
      seed: int = 0,
      system: str = '',
      example_id: str | None = None,
  ):
    """Restores the run.

    Args:
      max_tokens: Tokens of an answer at most; by default the length of
        targets in TASK_FEATURE_LENGTHS.
      temperature: As in `LanguageModel.generate`.
      seed: Seed of the samples.
      system: The first message, of the role `system`; empty for none.
      example_id: For runs with EXAMPLE_IDS.

    Raises:
      errors.UserError: There is no checkpoint, the model has no chat template,
        or the id is missing or unknown.
    """
    experiment = run.build()
    compilation.use_cache(experiment.compilation_cache_dir)
    self._model = experiment.model
    self._prompts = prompts_lib.of_task(
        experiment.mixture_or_task_name, self._model.input_vocabulary,
        talks=True,
    )
    ids = example_ids.of_prompts([example_id], experiment.example_ids)
    self._ids = None if ids is None else np.array([ids], np.int32)
    lengths = experiment.task_feature_lengths
    self._limit = sum(lengths.values())
    self._max_tokens = max_tokens or lengths['targets']
    self._setup, self._params = restored.restore(experiment)
    self._system = system
    self._temperature, self._seed = temperature, seed
    self._stopped = False
    self._generate = jax.jit(self._generated)
    self._last: tuple[list[int], list[int]] = ([], [])
    self.forget()

  def forget(self) -> None:
    """Begins the conversation anew."""
    first = {'role': 'system', 'content': self._system}
    self.messages: list[Mapping[str, Any]] = [first] if self._system else []

  def answer(self, text: str) -> Iterator[str]:
    """Says something to the model; yields its answer in pieces.

    The answer becomes a part of the conversation, also if the iteration is left
    in the middle.

    Args:
      text: What the user says.

    Raises:
      errors.UserError: The message is longer than TASK_FEATURE_LENGTHS, or the
        chat template refuses the conversation; it is then as before.
    """
    asked = [*self.messages, {'role': 'user', 'content': text}]
    ids, asked = self._within_limit(asked)
    stream = token_texts.TextStream(self._model.output_vocabulary)
    found, said = [], ''
    try:
      for token in self._stream(ids):
        found.append(token)
        piece = stream.add(token)
        said += piece
        yield piece
      said += stream.rest()
      yield stream.rest()
    finally:
      self._last = ids, found
      answer = {'role': 'assistant', 'content': said}
      self.messages = [*asked, answer] if said else self.messages

  def _within_limit(self, asked):
    """The prompt, without the first turns where it is too long."""
    first = int(bool(self._system))
    while True:
      ids = self._prompts.of_messages(asked, place='the conversation')
      if len(ids) <= self._limit:
        return ids, asked
      if len(asked) <= first + 2:
        raise errors.UserError(
            f'The message has {len(ids)} tokens, and the run reads at most '
            f'{self._limit} (TASK_FEATURE_LENGTHS).', 'the message',
            'Shorten it.',
        )
      del asked[first : first + 2]  # What was said first, and its answer.

  def _stream(self, ids: Sequence[int]) -> Iterator[int]:
    """Yields the tokens of an answer while they are made."""
    length = -(-len(ids) // _LENGTH_STEP) * _LENGTH_STEP
    prompt = np.zeros((1, length), np.int32)
    prompt[0, : len(ids)] = ids
    self._stopped = False
    key = jax.random.key(self._seed + len(self.messages))

    def generate():
      with self._setup.context():
        jax.block_until_ready(self._generate(self._params, prompt, key))

    # What an answer that was left still says is no part of the next one.
    tokens = self._tokens = queue.SimpleQueue()
    # In a thread, so that Ctrl-C reaches this one at once.
    with concurrent.futures.ThreadPoolExecutor(1) as worker:
      done = worker.submit(generate)
      done.add_done_callback(lambda _: tokens.put(None))
      try:
        while (token := tokens.get()) is not None:
          yield token
      finally:
        self._stopped = True
      done.result()

  def _generated(self, params, prompt, key):
    return self._model.generate(
        trainable.unflatten(params), prompt, self._max_tokens,
        temperature=self._temperature, rng=key, watch=self._watch,
        example_ids=self._ids,
    )

  def _watch(self, tokens: np.ndarray) -> np.ndarray:
    """Gets each token of an answer, <int32>[1]; returns whether to stop."""
    self._tokens.put(int(tokens[0]))
    return np.asarray(self._stopped)

  def experts(self) -> dict[str, np.ndarray]:
    """Mean combine weights of the last answer, by kind of site.

    Returns:
      <float>[num_experts] by the name of the layer, such as `mlp/wo`, averaged
      over layers and over the tokens that wrote the answer (of an encoder, over
      those it read); empty if no adapter has a router, or no token was written.
    """
    if not self._last[1]:
      return {}
    batch = self._last_batch()
    with self._setup.context():
      sown = jax.device_get(jax.jit(
          lambda params, batch: usage.combine_weights(
              self._model, params, batch
          )
      )(self._params, batch))
    found: dict[str, list[np.ndarray]] = {}
    by_site = observe.choices({site: x for site, (x, _) in sown.items()})
    for site, weights in by_site.items():
      _, valid = sown[site]
      reads_answer = weights.shape[1] == batch['decoder_loss_weights'].shape[1]
      chosen = batch['decoder_loss_weights'] > 0 if reads_answer else valid
      kind = re.sub(r'(.*/)?layers_\d+/', '', site)
      found.setdefault(kind, []).append(weights[chosen].mean(0))
    # Of MoLA the lower layers have fewer experts.
    return {
        kind: sum(np.pad(x, (0, max(map(len, xs)) - len(x))) for x in xs)
        / len(xs)
        for kind, xs in found.items()
    }

  def _last_batch(self) -> dict[str, np.ndarray]:
    """Model features of the last prompt and its answer, one row."""
    inputs, targets = self._last
    dataset = tf.data.Dataset.from_tensors({
        'inputs': tf.constant(inputs, tf.int32),
        'targets': tf.constant(targets, tf.int32),
    })
    converter: seqio.FeatureConverter = converters.of_model(self._model)
    lengths = {'inputs': len(inputs), 'targets': len(targets)}
    (row,) = converter(dataset, lengths).batch(1).as_numpy_iterator()
    return row if self._ids is None else {**row, example_ids.FEATURE: self._ids}
