# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of T5X runs that hold the adapters and not the base.

Saved are the trained parameters, the frozen ones of adapters that T5X draws,
the optimizer state, the step, the position in the data, notes of data and
method, and the identity of the base, which is read again from its own path. T5X
takes the class of its Orbax checkpoint manager from gin only when it does not
resume, and that of its older checkpointer always; so this is one of the latter,
for `use_orbax = False`, and writes with Orbax all the same.
"""

from collections.abc import Mapping, Sequence
import tempfile
from typing import Any

from etils import epath  # Paths on a disk or in a bucket.
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from t5x import checkpoints as t5x_checkpoints

from moe_peft import errors
from moe_peft.core import trainable
from moe_peft.t5x import layout
from moe_peft.t5x import notes
from moe_peft.t5x import restorable
from moe_peft.t5x import whole_checkpoints
from moe_peft.training import base_identity
from moe_peft.training import checksums

# What says where the base lies, in training and in evaluation.
_BASE_BINDINGS = 'INITIAL_CHECKPOINT_PATH or BASE_PATH'


class AdapterCheckpointer:
  """Saves what is trained, restores it together with its base."""

  def __init__(
      self,
      train_state: Any,
      partitioner: Any,
      checkpoints_dir: str,
      dataset_iterator: Any = None,
      *,
      keep: int | None = None,
      save_dtype: Any = None,
      restore_dtype: Any = None,
      keep_dataset_checkpoints: int | None = None,
      base_path: str | None = None,
      trainable_regex: str = trainable.ADAPTER_REGEX,
      fresh_regex: str = '',
      mixture_or_task_name: str | None = None,
      allow_changed_data: bool = False,
      allow_changed_method: bool = False,
  ):
    """Makes a checkpointer; arguments up to `base_path` come from T5X.

    Args:
      train_state: Shapes of the whole train state.
      partitioner: T5X partitioner.
      checkpoints_dir: MODEL_DIR; empty where nothing is saved.
      dataset_iterator: Iterator to save and restore.
      keep: Number of newest checkpoints kept; None keeps all.
      save_dtype: Not used: adapters are saved as they are.
      restore_dtype: Type of a base that is restored for the first time.
      keep_dataset_checkpoints: Not used: they are small, and kept with theirs.
      base_path: T5X checkpoint of the base.
      trainable_regex: Parameters whose whole path matches are saved.
      fresh_regex: So are those whose whole path behind `target/` does: they do
        not come with the base, and some of them do not train.
      mixture_or_task_name: Whose data must be the same when a run continues.
      allow_changed_data: They may be others.
      allow_changed_method: So may settings of the method that change no shape.
    """
    del save_dtype, keep_dataset_checkpoints
    self._train_state = train_state
    self._partitioner = partitioner
    self._folder = checkpoints_dir
    self._dataset_iterator = dataset_iterator
    self._keep = keep
    self._restore_dtype = restore_dtype
    self._base_path = base_path
    trains, fresh = map(trainable.matcher, (trainable_regex, fresh_regex))
    self._is_saved = lambda path: trains(path) or fresh(f'target/{path}')
    self._saved_identity: dict[str, Any] | None = None
    self._notes = notes.Notes(
        mixture_or_task_name, allow_changed_data, allow_changed_method
    )

  def save(
      self,
      train_state: Any,
      state_transformation_fns: Sequence[Any] = (),
      *,
      concurrent_gb: int = 128,
  ) -> None:
    """Saves a checkpoint and waits until it is whole.

    Args:
      train_state: The whole train state.
      state_transformation_fns: Must be empty.
      concurrent_gb: Not used.

    Raises:
      errors.UserError: If transformations are asked for.
    """
    del concurrent_gb
    if state_transformation_fns:
      raise errors.UserError(
          'Checkpoints of adapters are not transformed.',
          where='utils.SaveCheckpointConfig.state_transformation_fns',
          remedy='Remove it, or leave out the gin file '
          'gin/runs/t5x_adapter_checkpoints.gin.',
      )
    step = int(np.asarray(train_state.step))
    if step == 0:
      # Nothing is trained yet, and T5X has already taken the first batch from
      # the iterator: whoever resumed here would never see that batch.
      return
    with self._manager(self._folder, keep=self._keep) as manager:
      if step in manager.all_steps():
        return  # T5X saves once more where it resumes.
      if self._saved_identity is None:  # The base never changes.
        self._saved_identity = self._identity(train_state)
      items = ocp.args.Composite(
          state=ocp.args.PyTreeSave(self._saved(train_state.state_dict())),
          base=ocp.args.JsonSave(self._saved_identity),
          **{k: ocp.args.JsonSave(x) for k, x in self._notes.now().items()},
          **self._dataset_items(),
          **{checksums.ITEM: checksums.Args()},
      )
      manager.save(step, args=items, force=True)
      manager.wait_until_finished()

  def restore(
      self,
      path: str,
      state_transformation_fns: Sequence[Any] = (),
      fallback_state: Mapping[str, Any] | None = None,
      lazy_parameters: bool = False,
  ) -> Any:
    """Restores a checkpoint of adapters with its base, or a T5X checkpoint.

    Args:
      path: Folder `checkpoint_<step>`.
      state_transformation_fns: T5X's, for a T5X checkpoint.
      fallback_state: What a T5X checkpoint may lack.
      lazy_parameters: Not used.

    Returns:
      The whole train state.

    Raises:
      errors.UserError: If a file has changed since it was written and there
        is no whole checkpoint to go on from, if it holds other adapters than
        the model has, if the base is not the one they belong to, or if a run
        would go on with other data or another method.
    """
    del lazy_parameters
    if not (epath.Path(path) / 'base').is_dir():
      return self._restore_stock(
          path,
          self._restore_dtype,
          state_transformation_fns=state_transformation_fns,
          fallback_state=fallback_state,
      )
    resumes = self._dataset_iterator is not None
    path = whole_checkpoints.newest(path.rstrip('/'), resumes, self._steps)
    folder, _, step = path.rpartition('checkpoint_')
    shapes = self._saved(self._laid_out())
    restorable.check_state(path, shapes)
    items = ocp.args.Composite(
        # Partial: to evaluate, T5X wants no optimizer state.
        state=ocp.args.PyTreeRestore(
            shapes,
            restore_args=ocp.checkpoint_utils.construct_restore_args(shapes),
            partial_restore=True,
        ),
        base=ocp.args.JsonRestore(),
        **self._dataset_items(),
    )
    self._notes.check(path, self._read_notes(path), resumes)
    with self._manager(folder) as manager:
      restored = manager.restore(int(step), args=items)
    everything = trainable.flatten(self._train_state.state_dict())
    absent = {k: None for k, leaf in everything.items() if leaf is None}
    state = trainable.unflatten(absent | trainable.flatten(restored['state']))
    return self._with_base(path, state, restored['base'])

  def _steps(self, folder: str) -> list[int]:
    with self._manager(folder) as manager:
      return manager.all_steps()

  def _read_notes(self, path: str) -> Mapping[str, Any]:
    """Notes of a checkpoint, which one of an older version lacks."""
    folder, _, step = path.rpartition('checkpoint_')
    there = [x for x in notes.NAMES if (epath.Path(path) / x).exists()]
    if not there:
      return {}
    args = ocp.args.Composite(**{x: ocp.args.JsonRestore() for x in there})
    with self._manager(folder) as manager:
      return manager.restore(int(step), args=args)

  def _dataset_items(self) -> dict[str, Any]:
    if self._dataset_iterator is None:
      return {}
    return {'dataset': t5x_checkpoints.DatasetArgs(self._dataset_iterator)}

  def _with_base(self, path, state, saved):
    """The whole train state of restored adapters."""
    base_path = self._base_path or saved['path']
    if saved['sha256'] is None:  # Everything was trained, there is no base.
      return self._train_state.restore_state(state)
    if not base_path or not epath.Path(base_path).exists():
      raise errors.UserError(
          f'The adapters in {path} belong to the base {saved["path"]}, and '
          f'{base_path} does not exist.',
          where=_BASE_BINDINGS,
          remedy='Say where the base lies now.',
      )
    restorable.check_base(
        base_path,
        self._frozen(self._train_state.state_dict()['target']),
        _BASE_BINDINGS,
    )
    # As it was trained: where T5X resumes, it does not say the type again.
    train_state = self._restore_stock(
        base_path,
        saved.get('dtype'),  # The first version noted none.
        state_transformation_fns=(self._keep_base,),
        fallback_state=state,
    )
    found = self._identity(train_state)
    if not whole_checkpoints.is_of(saved, found):
      raise errors.UserError(
          f'{base_path} ({found["parameters"]:,} parameters, sha256 '
          f'{found["sha256"][:12]}) is not the base on which the adapters in '
          f'{path} were trained: {saved["path"]} ({saved["parameters"]:,} '
          f'parameters, sha256 {saved["sha256"][:12]}).',
          where=_BASE_BINDINGS,
          remedy='Give the path of the base on which they were trained.',
      )
    return train_state

  def _keep_base(self, from_checkpoint, unused_state, is_resuming=False):
    """A transformation of T5X: of a checkpoint the base alone is read."""
    del is_resuming
    frozen = self._frozen(from_checkpoint['target'])
    return {'target': trainable.unflatten(frozen)}

  def _restore_stock(self, path: str, dtype: Any, **kwargs: Any) -> Any:
    # T5X's manager tidies the folder it is given: not that of the base.
    with tempfile.TemporaryDirectory() as folder:
      manager = t5x_checkpoints.OrbaxCheckpointManagerInterface(
          directory=folder,
          train_state=self._train_state,
          partitioner=self._partitioner,
          restore_dtype=dtype,
      )
      train_state = manager.restore(path=path, **kwargs)
      manager.close()
    return train_state

  def _manager(self, folder: str, keep: int | None = None) -> Any:
    data = self._partitioner.get_data_layout()
    dataset = t5x_checkpoints.DatasetCheckpointHandler(
        f'train_ds-{data.shard_id:03}-of-{data.num_shards:03}',
        self._dataset_iterator is not None
        and data.is_first_host_in_replica_set,
    )
    return ocp.CheckpointManager(
        epath.Path(folder),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            step_prefix='checkpoint',
            cleanup_tmp_directories=folder == self._folder,
        ),
        item_handlers={
            'state': ocp.PyTreeCheckpointHandler(),
            'base': ocp.JsonCheckpointHandler(),
            **{x: ocp.JsonCheckpointHandler() for x in notes.NAMES},
            'dataset': dataset,
            checksums.ITEM: checksums.Handler(),  # The last one.
        },
    )

  def _saved(self, state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state dictionary that is saved."""
    keep = lambda path: not path.startswith('target/') or self._is_saved(
        path.removeprefix('target/')
    )
    # T5X's MultiOptimizer has None in the place of a state.
    return trainable.unflatten({
        path: leaf
        for path, leaf in trainable.flatten(state).items()
        if leaf is not None and keep(path)
    })

  def _frozen(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """The flat parameters of the base."""
    flat = trainable.flatten(params)
    return {k: v for k, v in flat.items() if not self._is_saved(k)}

  def _laid_out(self) -> dict[str, Any]:
    """Shapes of the whole train state, with their shardings."""
    axes = self._partitioner.get_mesh_axes(self._train_state)
    return layout.lay_out(
        self._train_state, axes, self._partitioner.mesh
    ).state_dict()

  def _identity(self, train_state: Any) -> dict[str, Any]:
    """Where the base lies, its size, type and a fingerprint of its values."""
    frozen = self._frozen(train_state.state_dict()['target'])
    return {
        **base_identity.of(self._base_path, frozen, self._partitioner.mesh),
        'dtype': str(jnp.result_type(*frozen.values())) if frozen else None,
        'version': base_identity.VERSION,
    }
