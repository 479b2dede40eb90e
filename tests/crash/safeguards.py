"""The safeguards of the code: each a few lines that are easily lost, and the test that misses them.

`code` is the safeguard as it stands in the source, exactly once; `without` is what stands there
after somebody has taken it out. `test` is what must fail then.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Safeguard:
    """Something in the code that a promise stands on.

    Attributes:
        name: what it does, in a few words.
        file: below src/holdfast.
        code: a part of that file which occurs once.
        without: the same without the safeguard.
        test: what pytest is given; it must fail without.

    """

    name: str
    file: str
    code: str
    without: str
    test: str


SAFEGUARDS = [
    # -- P1: order and durability of what is written
    Safeguard(
        "payload files are synced",
        "open_files.py",
        "            files.system.truncate(self._fd, self.size)\n            files.system.fsync(self._fd)\n",
        "            files.system.truncate(self._fd, self.size)\n",
        "tests/crash/test_power_loss.py -k later_saves",
    ),
    Safeguard(
        "small files are synced",
        "files.py",
        "            if sync:\n                system.fsync(fd)\n        except BaseException",
        "            pass\n        except BaseException",
        "tests/crash/test_power_loss.py -k later_saves",
    ),
    Safeguard(
        "a sync is no success on a disk that is gone",
        "files.py",
        "            os.fstat(fd)\n",
        "",
        "tests/crash/test_full_disks.py -k nothing_is_synced",
    ),
    Safeguard(
        "the draft's directory is synced before its rename",
        "store/publish.py",
        "        files.sync_directory(self.directory)\n        return manifest\n",
        "        return manifest\n",
        "tests/crash/test_power_loss.py -k later_saves",
    ),
    Safeguard(
        "the run's directory is synced after the rename",
        "store/publish.py",
        "    try:\n        files.sync_directory(run)\n    except",
        "    try:\n        pass\n    except",
        "tests/crash/test_power_loss.py -k later_saves",
    ),
    Safeguard(
        "a new directory's name is synced",
        "files.py",
        "        sync_directory(os.path.dirname(directory))\n",
        "",
        "tests/crash/test_power_loss.py -k first_save",
    ),
    Safeguard(
        "what replaces a checkpoint is durable before the old one is deleted",
        "store/publish.py",
        "    files.sync_directory(parent)\n    files.remove_tree(draft.directory)",
        "    files.remove_tree(draft.directory)",
        "tests/crash/test_power_loss.py -k save_again",
    ),
    Safeguard(
        "a checkpoint is built where no reader looks",
        "saving.py",
        "                    session.writing,\n                    manifest.name,",
        "                    session.path,\n                    manifest.name,",
        "tests/crash/test_kill_points.py -k FurtherSave",
    ),
    Safeguard(
        "a short write is continued",
        "open_files.py",
        "                offset += done\n                data = data[done:]\n",
        "                offset += done\n                data = data[len(data) :]\n",
        "tests/unit/test_writer.py::test_a_short_write_is_continued",
    ),
    Safeguard(
        "an existing file is never written over",
        "open_files.py",
        "        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL\n",
        "        flags = os.O_WRONLY | os.O_CREAT\n",
        "tests/unit/test_writer.py::test_an_existing_file_is_not_overwritten",
    ),
    Safeguard(
        "a failed sync of the run's directory takes the checkpoint back",
        "store/publish.py",
        "            files.rename(final, draft.directory)\n        draft.discard()\n        raise\n",
        "            pass\n        raise\n",
        "tests/unit/test_save_failures.py::test_failed_sync_of_the_run_directory",
    ),
    Safeguard(
        "a save that failed removes its files",
        "store/publish.py",
        "        with contextlib.suppress(OSError):\n            files.remove_tree(self.directory)\n",
        "",
        "tests/crash/test_full_disks.py::test_save[tmpfs-unchecked-buffered]",
    ),
    Safeguard(
        "space is looked at before writing",
        "store/publish.py",
        "        storage.check_space(parent, self._needed)\n",
        "",
        "tests/unit/test_refusals.py::test_no_space_is_found_out_before_writing",
    ),
    # -- P2: what is read is what was written
    Safeguard(
        "each block's digest is compared",
        "payload/blocks.py",
        "        if found != expected:\n            count",
        "        if False:\n            count",
        "tests/unit/test_reader.py::test_a_flipped_bit_is_found",
    ),
    Safeguard(
        "the blocks of a header are checked at any load",
        "payload/reader.py",
        "            pieces[name, number] = []\n",
        "            pass\n",
        "tests/unit/test_reader.py::test_the_header_of_a_file_with_only_empty_arrays_is_checked",
    ),
    Safeguard(
        "sizes are compared before the first byte is read",
        "payload/reader.py",
        "                _check_size(source.path, file)\n",
        "                pass\n",
        "tests/unit/test_reader.py::test_structural_damage_is_found_before_any_byte_is_written",
    ),
    Safeguard(
        "the digest of a JSON file is compared",
        "format/sealed.py",
        "    if expected != found:\n        directory,",
        "    if False:\n        directory,",
        "tests/unit/test_sealed.py::test_every_flipped_bit_is_found",
    ),
    Safeguard(
        "a key given twice is refused",
        "format/sealed.py",
        "        if len(result) != len(pairs):\n",
        "        if False:\n",
        "tests/unit/test_sealed.py::test_hostile_but_with_a_right_digest",
    ),
    Safeguard(
        "a key given twice is refused in a list of checkpoints, too",
        "format/summary.py",
        'return rows.count(b"{") == len(found) and rows.count(b":") == sum(map(len, found))',
        'return rows.count(b"{") == len(found)',
        "tests/unit/test_summary.py",
    ),
    Safeguard(
        "a list of checkpoints takes as known only what stands between complete values",
        "format/summary.py",
        "        if not self._know_rows(rows):\n",
        "        if not self._know_rows(rows) and shared in self._shared:\n",
        "tests/unit/test_summary.py",
    ),
    Safeguard(
        "arrays.json is compared with what checkpoint.json says of it",
        "content.py",
        "        if found != listed.digest:\n",
        "        if False:\n",
        "tests/damaged/test_harms.py -k mixture",
    ),
    Safeguard(
        "the payload's digests are compared between the two JSON files",
        "content.py",
        "own is None or record is None or own.size != record.size or own.digest != digest:\n",
        "own is None or record is None:\n",
        "tests/damaged/test_harms.py::test_tables_that_do_not_belong_together",
    ),
    Safeguard(
        "a checkpoint of another run is foreign",
        "store/entry.py",
        "            if (summary.run, summary.name, summary.sequence) != (identity, self.folder, self.sequence):\n",
        "            if False:\n",
        "tests/unit/test_references.py::test_foreign_is_listed_and_never_resumed",
    ),
    Safeguard(
        "links are not followed out of a checkpoint",
        "files.py",
        "os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK",
        "tests/damaged/test_harms.py::test_something_else_in_the_place_of_a_file",
    ),
    Safeguard(
        "a pipe in a file's place does not hang the reader",
        "files.py",
        "os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW",
        "tests/damaged/test_harms.py -k pipe --timeout=20 --timeout-method=signal",
    ),
    Safeguard(
        "resuming passes over what is damaged",
        "resuming.py",
        "            failures.append(failure)\n",
        "            raise failure\n",
        "tests/unit/test_references.py::test_a_damaged_newest_falls_back",
    ),
    Safeguard(
        "a run with nothing whole left never begins anew",
        "resuming.py",
        "    if problems:\n        raise _nothing_left(session.path, problems, changed=False)\n",
        "",
        "tests/unit/test_references.py::test_a_lost_manifest_everywhere_is_no_fresh_start",
    ),
    Safeguard(
        "after a restore that failed half-way nothing is saved",
        "training.py",
        "        if self.torn:\n",
        "        if False:\n",
        "tests/unit/test_references.py::test_a_failed_restore_forbids_saving",
    ),
    # -- P3: the last good one
    Safeguard(
        "the newest clean checkpoint stays",
        "policy/keep.py",
        "        safe.add(newest.name)\n",
        "",
        "tests/unit/test_keep.py::test_budget_never_takes_the_protected",
    ),
    Safeguard(
        "the best stays",
        "policy/keep.py",
        '        stays[record.name].append(f"{_place(place)}{_score(keep, record)}")\n        safe.add(record.name)\n',
        "        pass\n",
        "tests/unit/test_keep.py::test_best_stays",
    ),
    Safeguard(
        "what is marked NaN does not count as newest",
        "policy/keep.py",
        "    clean = [record for record in ordered if record.clean]\n",
        "    clean = [record for record in ordered if record.whole and not record.abandoned]\n",
        "tests/unit/test_retention.py::test_nan_never_costs_the_clean_ones",
    ),
    Safeguard(
        "pins are read again after the rename",
        "store/retention.py",
        "    if name in catalog.marks(run, PINS):\n        with files",
        "    if False:\n        with files",
        "tests/unit/test_retention.py::test_pins_are_read_before_and_after_the_rename",
    ),
    Safeguard(
        "deletion comes after publishing",
        "saving.py",
        "        path = publish(draft, session.path)\n",
        "        self._retain(flight, [*before, entry])\n        path = publish(draft, session.path)\n",
        "tests/unit/test_retention.py::test_the_successor_is_durable_first",
    ),
    # -- P5: what is copied behind the training
    Safeguard(
        "an optimizer's step waits for what is still being copied",
        "overlap.py",
        "        pending.settle()\n        trial = self._trial",
        "        trial = self._trial",
        "tests/exact/test_overlap.py::test_steps",
    ),
    Safeguard(
        "buffers are copied before the training goes on",
        "payload/writer.py",
        "        self._filling.fill(index, number, buffer.bytes, late=True)\n",
        "        self._filling.fill(index, number, buffer.bytes, late=True)\n        self._filling.fill(index, number, buffer.bytes, late=False)\n",
        "tests/exact/test_overlap.py::test_buffers",
    ),
    Safeguard(
        "a copy whose arrays changed meanwhile is not published",
        "overlap.py",
        "            if changed:\n                raise TornCopyError",
        "            if False:\n                raise TornCopyError",
        "tests/exact/test_overlap.py::test_a_rare_stranger_is_noticed",
    ),
    Safeguard(
        "overlap is earned by a comparison of every byte",
        "overlap.py",
        "            self._try(late, key)\n            return None\n",
        "            self._earned = key\n",
        "tests/exact/test_overlap.py::test_strangers_are_noticed",
    ),
    Safeguard(
        "a step without a hook is noticed at the next boundary",
        "training.py",
        "        self.overlap.look()\n",
        "",
        "tests/exact/test_overlap.py::test_steps_by_hand_are_noticed",
    ),
    Safeguard(
        "leaving the batches waits for what is still being copied",
        "loop.py",
        "                finally:\n                    training.overlap.settle()\n",
        "                finally:\n                    pass\n",
        "tests/exact/test_overlap.py::test_leaving_the_batches",
    ),
    Safeguard(
        "a restore waits for what is still being copied",
        "payload/reader.py",
        "pending.settle_for_reading()",
        "pending.written()",
        "tests/exact/test_overlap.py::test_restoring_in_the_body",
    ),
    Safeguard(
        "a known description is given for what looks the same alone",
        "state/known.py",
        "kept.key == sight.key:",
        "True:",
        "tests/frameworks/test_torch_sight.py -k every_change",
    ),
    Safeguard(
        "what was derived from arrays is not given for others",
        "state/known.py",
        "known.basis == basis and _same(known.arrays, arrays)",
        "known.basis == basis",
        "tests/frameworks/test_torch_sight.py -k what_is_derived",
    ),
    Safeguard(
        "a dropped model's memory is let go",
        "state/known.py",
        "            found._forget(name)\n",
        "            pass\n",
        "tests/frameworks/test_torch_sight.py -k memory_goes_with_its_owners",
    ),
    # -- P6: nothing is run
    Safeguard(
        "an entire model needs trust",
        "torch/model.py",
        "    if trust is not True:\n",
        "    if False:\n",
        "tests/frameworks/test_torch_model.py::test_without_trust_it_is_refused_and_nothing_runs",
    ),
    # -- P7: errors reach the caller
    Safeguard(
        "a background save's error is raised at the next touch",
        "payload/threads.py",
        "        if self._error is not None:\n            raise self._error\n        return True\n",
        "        return True\n",
        "tests/crash/test_ends.py::test_background_failure_at_the_next_touch",
    ),
    Safeguard(
        "an error that nobody has seen ends the process with its code",
        "run.py",
        "        os._exit(code)\n",
        "        pass\n",
        "tests/crash/test_ends.py::test_background_failure_at_exit",
    ),
    Safeguard(
        "close waits for the save in flight",
        "training.py",
        "                self.saver.drain()\n            except KeyboardInterrupt:\n",
        "                pass\n            except KeyboardInterrupt:\n",
        "tests/unit/test_save_failures.py",
    ),
    # -- P8: one writer
    Safeguard(
        "a lease is created exclusively",
        "open_files.py",
        "            self._fd = files.system.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)\n",
        "            self._fd = files.system.open(path, os.O_RDWR | os.O_CREAT)\n",
        "tests/crash/test_lease_model.py -k test_every_order[two-start]",
    ),
    Safeguard(
        "a contender looks again after it has made its directory",
        "store/lease.py",
        "        files.sync_directory(self.run)\n        if self._outrun():\n            return False\n        for path in older:\n",
        "        files.sync_directory(self.run)\n        for path in older:\n",
        "tests/crash/test_lease_model.py::test_every_order",
    ),
    Safeguard(
        "a former holder's directory is renamed away",
        "store/lease.py",
        '                    path = _take_out_of_use(path, f"{path}.swept-{self.generation:06d}")\n',
        "                    pass\n",
        "tests/crash/test_lease_model.py::test_every_order",
    ),
    Safeguard(
        "a living holder is not taken over",
        "store/holder.py",
        '    return "dead" if holder.pid == me.pid else "alive"\n',
        '    return "dead"\n',
        "tests/unit/test_lease.py::test_living_process_is_refused_with_its_name",
    ),
    Safeguard(
        "a pid that was given to another process is not the holder",
        "store/holder.py",
        '    if start != holder.process_start:\n        return "dead"\n',
        "",
        "tests/unit/test_lease.py::test_reused_pid_is_dead",
    ),
    Safeguard(
        "a pid of another namespace proves nothing",
        "store/holder.py",
        "    if (holder.boot_id, holder.pid_namespace) != (me.boot_id, me.pid_namespace):\n",
        "    if holder.boot_id != me.boot_id:\n",
        "tests/crash/test_lease_elsewhere.py",
    ),
    Safeguard(
        "a beat that moves is a living holder",
        "store/watch.py",
        "            elif seen[1] != content:\n                self._still, self._moved = 0.0, True\n",
        "",
        "tests/unit/test_lease.py::test_beating_holder_elsewhere_is_alive",
    ),
    Safeguard(
        "a forked child writes nothing",
        "run.py",
        '        if os.getpid() != self._pid:\n            raise UsageError("This run belongs to the parent',
        '        if False:\n            raise UsageError("This run belongs to the parent',
        "tests/unit/test_refusals.py::test_a_forked_child_is_inert",
    ),
    # -- mirrors
    Safeguard(
        "a block is checked before it is copied into a mirror",
        "mirrors/copying.py",
        "            if present == len(block) and _is(block, digest):\n",
        "            if present == len(block):\n",
        "tests/mirrors/test_mirrors.py::test_damage_is_not_spread",
    ),
    Safeguard(
        "what an interrupted copy left is checked",
        "mirrors/copying.py",
        "if part.read(block, start) and _is(block, digest):",
        "if part.read(block, start):",
        "tests/mirrors/test_mirrors.py::test_an_interrupted_copy_goes_on_by_block",
    ),
    Safeguard(
        "a copy is built where no reader of the mirror looks",
        "mirrors/folder.py",
        """        source, final = os.path.join(self._own, name), os.path.join(self.url, name)
""",
        """        source, final = os.path.join(self._own, name), os.path.join(self.url, name)
        files.make_new_directory(final)
        for file in os.listdir(source):
            files.rename(os.path.join(source, file), os.path.join(final, file))
        return
""",
        "tests/mirrors/test_faults.py -k killed_anywhere",
    ),
    Safeguard(
        "the files of a copy are synced",
        "open_files.py",
        """            with files.translated(self.path, "sync"):
                files.system.truncate(self._fd, self.size)
                files.system.fsync(self._fd)
        except BaseException:
""",
        """            with files.translated(self.path, "sync"):
                files.system.truncate(self._fd, self.size)
        except BaseException:
""",
        "tests/mirrors/test_lagging.py::test_durable_before_it_is_seen",
    ),
    Safeguard(
        "a mirror's folder is synced after the rename",
        "mirrors/folder.py",
        """            files.rename(source, final)
        try:
            files.sync_directory(self.url)
""",
        """            files.rename(source, final)
        try:
            pass
""",
        "tests/mirrors/test_lagging.py::test_durable_before_it_is_seen",
    ),
    Safeguard(
        "the lease is looked at before a checkpoint appears in a mirror",
        "mirrors/mirroring.py",
        "            self._lease.check()\n            place.publish(name)\n",
        "            place.publish(name)\n",
        "tests/mirrors/test_lagging.py::test_a_lost_lease_changes_nothing_in_the_mirror",
    ),
    Safeguard(
        "who writes a mirror takes the directory of the writer before out of use",
        "mirrors/folder.py",
        "        others = [path for name in names if (path := os.path.join(self.url, name)) != self._own]\n",
        "        others: list[str] = []\n",
        "tests/mirrors/test_lagging.py::test_a_sleeping_writer_finds_its_directory_gone",
    ),
    Safeguard(
        "a run takes from its mirrors only what is newer than all that it has",
        "mirrors/plan.py",
        " or record.sequence <= highest:",
        ":",
        "tests/mirrors/test_plan.py::test_only_newer_ones_are_offered",
    ),
    Safeguard(
        "a mirror does not undo a rewind that did not know of it",
        "mirrors/plan.py",
        "            if rewound is not None and created <= rewound:\n                continue\n",
        "",
        "tests/mirrors/test_mirrors.py::test_a_rewind_that_did_not_know",
    ),
    Safeguard(
        "a mirror of another run is refused",
        "mirrors/fetching.py",
        "        if state.found is not None and mine is not None and state.found.id != mine.id:\n",
        "        if False:\n",
        "tests/mirrors/test_mirrors.py::test_another_run",
    ),
    Safeguard(
        "an empty run begins nothing while a mirror cannot be read",
        "mirrors/fetching.py",
        "            if empty:\n                raise _unreadable(",
        "            if False:\n                raise _unreadable(",
        "tests/mirrors/test_mirrors.py::test_an_empty_run_begins_nothing_while_a_mirror_is_out_of_reach",
    ),
    Safeguard(
        "where a mirror was and is no more nothing is written",
        "mirrors/mirroring.py",
        "        if found is None and state.reached:\n",
        "        if False:\n",
        "tests/mirrors/test_mirrors.py::test_a_mirror_that_vanished_is_not_begun_anew",
    ),
    Safeguard(
        "a deletion waits for a mirror that lags",
        "saving.py",
        "            if verdict.kept or verdict.record.name in held:\n",
        "            if verdict.kept:\n",
        "tests/mirrors/test_lagging.py::test_two_deletions_wait",
    ),
    Safeguard(
        "a repair builds a new file",
        "mirrors/repairing.py",
        """    draft = FolderTarget(os.path.join(writing, f"{name}.repair"))
""",
        """    draft = FolderTarget(path)
    draft.begin = lambda _: None  # type: ignore[method-assign]
""",
        "tests/mirrors/test_mirrors.py::test_exactly_the_damaged_block_is_fetched",
    ),
    Safeguard(
        "close waits for mirrors",
        "mirrors/mirroring.py",
        "        while not self._idle():\n",
        "        while False:\n",
        "tests/mirrors/test_lagging.py::test_two_deletions_wait",
    ),
    Safeguard(
        "nothing is begun beside an unfinished fetch",
        "training.py",
        "            if self.mirroring is None:\n                self._look",
        "            if False:\n                self._look",
        "tests/mirrors/test_push_pull.py::test_nothing_is_begun_beside_an_unfinished_pull",
    ),
    Safeguard(
        "what was fetched becomes visible by way of the lease's own directory",
        "mirrors/arrivals.py",
        "            files.rename(os.path.join(self.path, name), draft)\n            files.rename(draft, final)\n",
        "            files.rename(os.path.join(self.path, name), final)\n",
        "tests/mirrors/test_push_pull.py::test_a_holder_that_lost_its_lease_publishes_nothing_that_it_fetched",
    ),
    Safeguard(
        "a push leaves the mirrors of a living training to that",
        "pushing.py",
        "        if holder is not None:\n",
        "        if False:\n",
        "tests/mirrors/test_push_pull.py::test_a_living_run_keeps_its_mirrors_itself",
    ),
    Safeguard(
        "a disk that fills in the middle of a save releases what mirrors hold back",
        "payload/writer.py",
        "        self._room.write(lambda: file.disk.write(buffer.view[:size], start))\n",
        "        file.disk.write(buffer.view[:size], start)\n",
        "tests/mirrors/test_full.py -k payload",
    ),
    # -- object stores
    Safeguard(
        "in an object store checkpoint.json is deleted first",
        "mirrors/bucket.py",
        """        self._objects.delete([f"{name}/{CHECKPOINT_FILE}"])
        # Only when this is answered: until then the checkpoint may be seen.
        files = self._last_seen().files.pop(name, {})
        self._objects.delete([f"{name}/{file}" for file in files if file != CHECKPOINT_FILE])
""",
        """        files = self._last_seen().files.pop(name, {})
        self._objects.delete([f"{name}/{file}" for file in files if file != CHECKPOINT_FILE])
        self._objects.delete([f"{name}/{CHECKPOINT_FILE}"])
""",
        "tests/mirrors/test_bucket_faults.py -k killed_at_any_request[Further]",
    ),
    Safeguard(
        "the lease is looked at before checkpoint.json goes into an object store",
        "mirrors/bucket.py",
        "        def done(data: bytes) -> None:\n            self._held[name] = data\n",
        "        def done(data: bytes) -> None:\n            self._held[name] = data\n            self.publish(name)\n",
        "tests/mirrors/test_bucket.py::test_a_lost_lease_changes_nothing",
    ),
    Safeguard(
        "what lies in an object store is told by its digest",
        "mirrors/bucket.py",
        "            return self._objects.facts(file) == (size, self._digests[file])\n",
        "            return self._objects.facts(file).size == size\n",
        "tests/mirrors/test_bucket.py::test_an_interrupted_copy_goes_on_by_file",
    ),
    Safeguard(
        "a manifest that a store does not give is not taken for a damaged one",
        "store/entry.py",
        "            if distant and isinstance(error, StorageError):\n",
        "            if False:\n",
        "tests/mirrors/test_bucket.py::test_what_cannot_be_read_is_not_passed_over",
    ),
    Safeguard(
        "a block that was left in Azure is told by its bytes",
        "objects/azure_parts.py",
        "xxhash.xxh3_128_digest(data)",
        "xxhash.xxh3_128_digest(b'')",
        "tests/mirrors/test_blocks.py -k two_that_send_something_else",
    ),
    Safeguard(
        "a part goes to Google along with its MD5",
        "objects/amazon_parts.py",
        "        if self.by_md5:\n            words[",
        "        if False:\n            words[",
        "tests/mirrors/test_multipart.py -k bit_that_flips",
    ),
]
