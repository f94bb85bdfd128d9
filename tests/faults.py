"""Plants one-line faults, one at a time, in a copy of the sources, and says which the suite finds.

    python tests/faults.py [WORD ...]      # only faults whose name contains a word

Each fault is a mistake that this field has made in public code or that would be easy to make here. The tests named are
first run without any fault and must pass; then each fault must make one of its own tests fail. Exit status 1 where a
fault is not found.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("dfkd", "samplers", "generators", "tests", "pyproject.toml", "README.md", "Makefile")


@dataclass(frozen=True)
class Fault:
    """One line of `file`, `right`, written as `wrong`; `tests` are pytest arguments, one of which must fail."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


RESPONSE, COMBINE = "tests/dfkd/losses/test_response.py", "tests/dfkd/losses/test_combine.py"
PROBLEM, ENGINE, TERMS = (
    "tests/dfkd/test_problem.py",
    "tests/dfkd/test_engine.py",
    "tests/samplers/ingredients/test_terms.py",
)
METRICS = "tests/dfkd/fidelity/test_metrics.py"
ADVERSARIES = "tests/generators/test_sn_gan_training.py"
DIFFUSION, DENOISING = "tests/samplers/test_diffusion.py", "tests/generators/test_diffusion.py"

FAULTS = (
    Fault(
        "KL with its sides swapped",
        "dfkd/losses/response.py",
        "return (log_p.exp() * (log_p - log_q)).sum(dim=1)",
        "return (log_q.exp() * (log_q - log_p)).sum(dim=1)",
        (f"{RESPONSE}::test_divergences_equal_their_definitions",),
    ),
    Fault(
        "KL as cross-entropy",
        "dfkd/losses/response.py",
        "return (log_p.exp() * (log_p - log_q)).sum(dim=1)",
        "return (log_p.exp() * -log_q).sum(dim=1)",
        (f"{RESPONSE}::test_divergences_equal_their_definitions",),
    ),
    Fault(
        "KL as a mean over classes",
        "dfkd/losses/response.py",
        "return (log_p.exp() * (log_p - log_q)).sum(dim=1)",
        "return (log_p.exp() * (log_p - log_q)).mean(dim=1)",
        (f"{RESPONSE}::test_two_classes_by_hand",),
    ),
    Fault(
        "temperature squared twice",
        "dfkd/losses/response.py",
        "return self.temperature**2",
        "return self.temperature**4",
        (
            f"{RESPONSE}::test_the_gradient_of_the_softened_divergence",
            f"{RESPONSE}::test_the_temperature_is_squared_in_one_place_only",
        ),
    ),
    Fault(
        "temperature squared nowhere",
        "dfkd/losses/combine.py",
        "factor *= loss.scale",
        "factor *= 1.0",
        (f"{COMBINE}::test_weights_and_scales_by_hand",),
    ),
    Fault(
        "features summed over their elements",
        "dfkd/losses/features.py",
        "return values.flatten(1).mean(dim=1)",
        "return values.flatten(1).sum(dim=1)",
        ("tests/dfkd/losses/test_features.py::test_distances_equal_their_definitions",),
    ),
    Fault(
        "features in the order in which they were asked for",
        "dfkd/fidelity/columns.py",
        "torch.cat(given)[order] for path",
        "torch.cat(given) for path",
        ("tests/dfkd/fidelity/test_features.py::test_features_are_those_of_the_rows_asked_for",),
    ),
    Fault(
        "alignment of features told as a distance",
        "dfkd/fidelity/features.py",
        "1.0 - float(cka(ours, theirs))",
        "float(cka(ours, theirs))",
        ("tests/dfkd/fidelity/test_features.py::test_equals_its_definitions",),
    ),
    Fault(
        "angles of the last rows alone where memory is short",
        "dfkd/losses/kernels.py",
        "total = total + checkpoint(",
        "total = checkpoint(",
        ("tests/dfkd/losses/test_kernels.py::test_angles_at_some_rows_at_a_time_are_those_of_all",),
    ),
    Fault(
        "a term of one source on the rows of all",
        "dfkd/losses/parts.py",
        "torch.where(here, call(student, teacher, batch), 0.0)",
        "call(student, teacher, batch)",
        ("tests/dfkd/losses/test_parts.py::test_each_source_has_its_own_temperature_and_weight",),
    ),
    Fault(
        "terms of members as a sum",
        "dfkd/config.py",
        "(weight / len(members), At(",
        "(weight, At(",
        ("tests/dfkd/losses/test_parts.py::test_equal_members_are_one_teacher",),
    ),
    Fault(
        "what warms up stands still on a network inside",
        "dfkd/losses/parts.py",
        "self._seen.progress, self._seen.horizon = self._whole.progress, self._whole.horizon",
        "pass",
        ("tests/dfkd/losses/test_parts.py::test_what_warms_up_does_so_on_a_network_inside_too",),
    ),
    Fault(
        "the deepest features come down to those of the exits",
        "dfkd/schemes/exits.py",
        "student.features[b].detach()) for a, b",
        "student.features[b]) for a, b",
        ("tests/dfkd/schemes/test_exits.py::test_features_of_exits_are_drawn_to_the_deepest_ones_which_are_fixed",),
    ),
    Fault(
        "a student in between with statistics of no network",
        "dfkd/schemes/offline.py",
        "batch=budget.batch) if anew else None",
        "batch=budget.batch) if False else None",
        (
            "tests/dfkd/schemes/test_from_teacher.py::"
            "test_in_between_the_statistics_are_those_of_its_own_layers_on_the_first_draws",
        ),
    ),
    Fault(
        "rounding of rows that are one row as if it were distances",
        "dfkd/losses/norms.py",
        "torch.where(there, x / torch.where(there, largest, 1.0), 0.0)",
        "x / torch.where(there, largest, 1.0)",
        ("tests/dfkd/losses/test_norms.py::test_distances_of_rows_that_are_one_row_pull_nowhere",),
    ),
    Fault(
        "a relation of a source that has one row in this batch",
        "dfkd/losses/parts.py",
        "if len(index) < _least(self.loss):",
        "if not len(index):",
        ("tests/dfkd/losses/test_parts.py::test_fewer_rows_of_a_source_than_a_relation_needs_are_nothing",),
    ),
    Fault(
        "a step away from the boundary",
        "dfkd/fidelity/boundary.py",
        "logits.gather(1, second) - logits.gather(1, first)",
        "logits.gather(1, first) - logits.gather(1, second)",
        ("tests/dfkd/fidelity/test_boundary.py::test_counts_the_rows_nearer_to_the_plane_than_one_step",),
    ),
    Fault(
        "a student started at the other end from its teacher",
        "dfkd/schemes/from_teacher.py",
        "torch.lerp(value, other.to(value.dtype), share)",
        "torch.lerp(other.to(value.dtype), value, share)",
        ("tests/dfkd/schemes/test_from_teacher.py::test_between_a_fresh_network_and_the_teacher",),
    ),
    Fault(
        "statistics estimated anew on the student's own draws, not on the named ones",
        "dfkd/scoring.py",
        "settings.evaluate.recalibrate_on or head.sampler",
        "head.sampler",
        ("tests/dfkd/test_comparison.py::test_other_batchnorm_modes_stand_beside_the_one_compared_in",),
    ),
    Fault(
        "squares of large maps overflow",
        "dfkd/losses/norms.py",
        "x / torch.where(there, largest, 1.0), 0.0)",
        "x, 0.0)",
        (
            "tests/dfkd/losses/test_attention.py::"
            "test_knows_neither_scale_nor_sign_nor_the_order_of_channels_and_is_zero_for_equal_maps",
        ),
    ),
    Fault(
        "directions of slopes begin anew after an interruption",
        "dfkd/losses/derivatives.py",
        "        self._stream.load_state_dict(state)",
        "        del state",
        ("tests/dfkd/losses/test_in_runs.py::test_interrupted_equals_uninterrupted",),
    ),
    Fault(
        "slopes of the student as it learns, not as it will be used",
        "dfkd/losses/derivatives.py",
        'if self._loss.student_mode == "eval":',
        "if False:",
        ("tests/dfkd/losses/test_derivatives.py::test_the_student_is_asked_as_it_will_be_used_or_as_it_learns",),
    ),
    Fault(
        "a tap shares its memory with what comes next",
        "dfkd/problem.py",
        "output.clone() if isinstance(output, Tensor) else output",
        "output",
        (f"{PROBLEM}::test_a_tap_is_not_changed_by_what_comes_next_in_place",),
    ),
    Fault(
        "sum over rows for their mean",
        "dfkd/losses/combine.py",
        "mean = values.mean() if weight is None",
        "mean = values.sum() if weight is None",
        ("tests/dfkd/losses/test_contract.py::test_duplicating_the_batch_leaves_the_objective",),
    ),
    Fault(
        "Jensen-Shannon with a wrong middle",
        "dfkd/losses/response.py",
        "log_m = torch.logaddexp(log_q, log_p) - math.log(2.0)",
        "log_m = 0.5 * (log_q + log_p)",
        (
            f"{RESPONSE}::test_jensen_shannon_is_symmetric_and_at_most_ln_2",
            f"{RESPONSE}::test_divergences_equal_their_definitions",
        ),
    ),
    Fault(
        "a row beside itself counted in feature kernels",
        "dfkd/losses/relations.py",
        '_FKD = Family("gram", "correlation", "zero", "square")',
        '_FKD = Family("gram", "correlation", "keep", "square")',
        ("tests/dfkd/losses/test_relations.py::test_a_row_beside_itself_does_not_count_in_feature_kernels",),
    ),
    Fault(
        "a slope without bound at a root of 0",
        "dfkd/losses/norms.py",
        "torch.where(square > nothing**2, square, 1.0).sqrt()",
        "square.sqrt().clamp_min(nothing)",
        (
            "tests/dfkd/losses/test_kernels.py::test_rows_without_a_direction_have_a_slope_with_a_bound",
            "tests/dfkd/losses/test_kernels.py::test_is_finite_with_a_finite_gradient_at_extremes",
        ),
    ),
    Fault(
        "distances that are 0 counted in their mean",
        "dfkd/losses/kernels.py",
        "there = (kernel > 0.0).sum()",
        "there = torch.tensor(kernel.numel())",
        ("tests/dfkd/losses/test_rkd.py::test_distances_equal_their_definition",),
    ),
    Fault(
        "the other classes not renormalised without the label",
        "dfkd/losses/decoupled.py",
        "among_q, among_p = rest_q.log_softmax(dim=1), rest_p.log_softmax(dim=1)",
        "among_q, among_p = rest_q, rest_p",
        ("tests/dfkd/losses/test_decoupled.py::test_parts_equal_their_definitions",),
    ),
    Fault(
        "drawn labels begin anew after an interruption",
        "dfkd/losses/sampled.py",
        "self._stream.load_state_dict(state)",
        "del state",
        ("tests/dfkd/losses/test_sampled.py::test_its_place_in_the_stream_is_saved",),
    ),
    Fault(
        "a log of another base in the class balance",
        "samplers/ingredients/classes.py",
        "return (log_mean.exp() * log_mean).sum()",
        "return (log_mean.exp() * log_mean).sum() / math.log(10.0)",
        (f"{TERMS}::test_balance_is_minus_ln_k_for_equal_classes_and_0_for_one_class",),
    ),
    Fault(
        "leaves of one size more often than their law has them",
        "samplers/dead_leaves.py",
        "bottom = -0.5 / least**2 - least",
        "bottom = -0.5 / least**2 - 1.0",
        ("tests/samplers/test_dead_leaves.py::test_radii_have_their_law",),
    ),
    Fault(
        "the slope of power for that of magnitude",
        "samplers/spectrum.py",
        "return fall.reciprocal()",
        "return fall.rsqrt()",
        ("tests/samplers/test_spectrum.py",),
    ),
    Fault(
        "crops leave the image",
        "samplers/one_image.py",
        "left = u[2] * (size[1] - wide) + u[3] * (wide - width)",
        "left = u[2] * size[1] + u[3] * (wide - width)",
        ("tests/samplers/test_one_image.py::test_rectangles_lie_in_a_part_of_the_image_and_have_their_area",),
    ),
    Fault(
        "the surest images for the least sure",
        "samplers/out_of_domain.py",
        "argsort(descending=True, stable=True)",
        "argsort(descending=False, stable=True)",
        ("tests/samplers/test_out_of_domain.py::test_keeps_what_the_teacher_is_least_sure_of",),
    ),
    Fault(
        "the adversary is the teacher itself",
        "samplers/ingredients/views.py",
        "self._student[mode] = self._problem.student(self.x, mode)",
        "self._student[mode] = self._problem.teacher(self.x, mode)",
        ("tests/samplers/test_generative.py", "tests/samplers/ingredients"),
    ),
    Fault(
        "the best images alias the live ones",
        "samplers/ingredients/descend.py",
        "self._x = torch.where(better, x.detach(), self._x)",
        "self._x = x.detach()",
        ("tests/samplers/test_deep_inversion.py", "tests/samplers/ingredients"),
    ),
    Fault(
        "descent for ascent in the search",
        "samplers/adversarial.py",
        "moved = (moved + step * slope.sign()).clamp(low, high)",
        "moved = (moved - step * slope.sign()).clamp(low, high)",
        ("tests/samplers/test_adversarial.py",),
    ),
    Fault(
        "searched pixels leave the box",
        "samplers/adversarial.py",
        "low, high = (origin - reach).clamp(min=spec.low), (origin + reach).clamp(max=spec.high)",
        "low, high = origin - reach, origin + reach",
        ("tests/samplers/test_adversarial.py", "tests/samplers/test_contract.py::test_draws_images_of_the_spec"),
    ),
    Fault(
        "a graph is left on the batch",
        "samplers/adversarial.py",
        "return x.index_copy(0, rows, moved.detach())",
        "return x.index_copy(0, rows, moved.requires_grad_(True))",
        ("tests/samplers/test_contract.py::test_draws_images_of_the_spec",),
    ),
    Fault(
        "BatchNorm distance squared",
        "samplers/ingredients/batchnorm.py",
        "gap = torch.linalg.vector_norm(layer.mean - layer.running_mean)",
        "gap = (layer.mean - layer.running_mean).square().sum()",
        ("tests/samplers/ingredients/test_batchnorm.py::test_equals_a_recount",),
    ),
    Fault(
        "the unbiased variance for the biased one",
        "dfkd/moments.py",
        "var = (x - _along(mean, x)).square_().mean(dim=over)",
        "var = (x - _along(mean, x)).square_().sum(dim=over) / (x.numel() // x.shape[1] - 1)",
        (f"{PROBLEM}::test_batchnorm_inputs_equal_their_definition", "tests/dfkd/test_moments.py"),
    ),
    Fault(
        "the variance's gradient about 0 for about the mean",
        "dfkd/moments.py",
        "grads[0] / count - slope * mean",
        "grads[0] / count",
        ("tests/dfkd/test_moments.py::test_gradients_are_those_of_differences",),
    ),
    Fault(
        "BatchNorm's shift without its mean",
        "dfkd/affine.py",
        "shift = -running_mean * scale",
        "shift = -running_mean",
        ("tests/dfkd/test_affine.py::test_answers_and_gradients_are_the_layers_own",),
    ),
    Fault(
        "BatchNorm in evaluation mode where the batch's own statistics are meant",
        "dfkd/affine.py",
        "if part.training or",
        "if",
        ("tests/dfkd/test_affine.py::test_in_training_mode_statistics_are_those_of_the_batch",),
    ),
    Fault(
        "a transposed convolution with the kernel as it was",
        "generators/doubling.py",
        "pad(weight.flip(2, 3), (1, 1, 1, 1))",
        "pad(weight, (1, 1, 1, 1))",
        ("tests/generators/test_doubling.py",),
    ),
    Fault(
        "models are not frozen while searching",
        "dfkd/problem.py",
        "parameter.requires_grad_(False)",
        "parameter.requires_grad_(True)",
        (f"{PROBLEM}::test_frozen_asks_no_parameter_and_puts_back_what_was",),
    ),
    Fault(
        "a hook is left behind",
        "dfkd/problem.py",
        "            for handle in handles:\n                handle.remove()\n\n    @contextmanager\n    def taps",
        "            for handle in handles[1:]:\n                handle.remove()\n\n    @contextmanager\n    def taps",
        ("tests/samplers/test_contract.py::test_leaves_both_models_as_they_were", PROBLEM),
    ),
    Fault(
        "labelling overwrites the teacher's statistics",
        "dfkd/problem.py",
        "part.training, part.track_running_stats = True, False",
        "part.training, part.track_running_stats = True, True",
        (f"{PROBLEM}::test_answers_as_its_mode_says_whatever_it_stands_in",),
    ),
    Fault(
        "a query that is not counted",
        "dfkd/problem.py",
        'self.counts[self.phase]["forward"] += n',
        'self.counts[self.phase]["forward"] += n - 1',
        (f"{PROBLEM}::test_counts_images_by_phase_and_direction",),
    ),
    Fault(
        "answers of another mode are used",
        "dfkd/problem.py",
        "and carried.labelling == batch.labelling",
        "and True",
        (f"{PROBLEM}::test_carried_answers_are_used_where_they_fit_the_request_only",),
    ),
    Fault(
        "what the teacher said survives new pixels",
        "dfkd/types.py",
        "return replace(self, x=x, teacher=None)",
        "return replace(self, x=x)",
        ("tests/dfkd/test_types.py::test_other_pixels_drop_what_the_teacher_said",),
    ),
    Fault(
        "parts of a mixture share a seed",
        "samplers/mixture.py",
        'part.init(problem, derive(seed, "part", place))',
        'part.init(problem, derive(seed, "part"))',
        ("tests/samplers/test_contract.py::test_equal_parts_of_a_mixture_differ",),
    ),
    Fault(
        "a step that is not saved",
        "dfkd/rng.py",
        'return {"seed": self.seed, "step": self.step}',
        'return {"seed": self.seed, "step": 0}',
        (
            "tests/dfkd/test_rng.py::test_continues_from_two_integers",
            "tests/samplers/test_contract.py::test_resumes_exactly",
        ),
    ),
    Fault(
        "noise from the global generator",
        "samplers/noise.py",
        "generator=rng",
        "generator=None",
        (
            "tests/samplers/test_contract.py::test_leaves_the_global_generators_alone",
            "tests/samplers/test_contract.py::test_does_not_ask_the_global_generators",
        ),
    ),
    Fault(
        "one mixing proportion for the whole batch",
        "samplers/mixup.py",
        "share = symmetric_beta(n, self.alpha, rng, device)",
        "share = symmetric_beta(1, self.alpha, rng, device).expand(n)",
        ("tests/samplers/test_mixup.py::test_each_row_has_its_own_proportion_and_partner",),
    ),
    Fault(
        "one crop for the whole batch",
        "dfkd/augment.py",
        "down, right = torch.randint(2 * pad + 1, (2, x.shape[0]), generator=generator, device=x.device)",
        "down, right = torch.randint(2 * pad + 1, (2, 1), generator=generator, device=x.device).expand(2, len(x))",
        ("tests/dfkd/test_augment.py::test_draws_each_image_on_its_own",),
    ),
    Fault(
        "rotation the other way",
        "dfkd/augment.py",
        "maps = torch.stack([cos, -sin * (h / w), zero, sin * (w / h), cos, zero], dim=1).view(n, 2, 3)",
        "maps = torch.stack([cos, sin * (h / w), zero, -sin * (w / h), cos, zero], dim=1).view(n, 2, 3)",
        ("tests/dfkd/test_augment.py::test_rotate_equals_torchvision_image_by_image",),
    ),
    Fault(
        "a part without rows lacks labels",
        "samplers/mixture.py",
        "batch in drawn.items() if batch.y is not None), *absent)",
        "batch in drawn.items() if batch.y is not None),)",
        ("tests/samplers/test_mixture.py::test_a_part_without_rows_lacks_no_labels",),
    ),
    Fault(
        "convolutions are rounded whatever the precision",
        "dfkd/engine.py",
        "        stack.enter_context(arithmetic(problem.student.precision))\n",
        "",
        ("tests/dfkd/test_compilation.py::test_products_are_rounded_in_a_run_alone",),
    ),
    Fault(
        "labels of rows that have none count",
        "dfkd/types.py",
        "if self.y is not None or self.known is None or not set(places) <= set(self.labelled):",
        "if self.y is not None or self.known is None:",
        ("tests/dfkd/losses/test_parts.py::test_labels_of_rows_that_have_none_are_refused",),
    ),
    Fault(
        "the student's optimiser is not resumed",
        "dfkd/engine.py",
        'self._optimiser.load_state_dict(state["optimiser"])',
        "pass",
        (f"{ENGINE}::test_interrupted_and_continued_equals_uninterrupted",),
    ),
    Fault(
        "the schedule's length is its own",
        "dfkd/engine.py",
        "rate = self._settings.rate(self._problem.progress)",
        "rate = self._settings.rate(min(1.0, self._steps / 200))",
        (f"{ENGINE}::test_equals_the_loop_by_hand",),
    ),
    Fault(
        "a bank does not show that an image was not finite",
        "samplers/pooled.py",
        "return torch.where(x.isfinite().all(), 0.0, torch.nan)",
        "return torch.zeros((), device=x.device)",
        ("tests/samplers/test_pooled.py::test_images_that_are_not_finite_end_the_run",),
    ),
    Fault(
        "a spoilt bank is sound again once it is shared",
        "samplers/pooled.py",
        "state.spoilt = state.spoilt + new.spoilt",
        "state.spoilt = state.spoilt + 0.0",
        ("tests/samplers/test_pooled.py::test_images_that_are_not_finite_are_so_for_whoever_shares_the_bank",),
    ),
    Fault(
        "maps of a search that diverged are kept as they are",
        "samplers/spaceshipnet.py",
        "kept = [torch.where(finite, maps, torch.nan) for maps in kept]",
        "kept = list(kept)",
        ("tests/samplers/test_spaceshipnet.py::test_a_search_without_a_finite_loss_gives_nothing",),
    ),
    Fault(
        "a round of a bank waits for the device",
        "samplers/pooled.py",
        "images = to_bytes(batch.x, problem.spec)",
        "images = to_bytes(batch.x, problem.spec) if bool(batch.x.isfinite().all()) else batch.x",
        ("tests/samplers/test_contract.py::test_never_waits_for_the_device[pooled_noise]",),
    ),
    Fault(
        "noise is drawn on the host",
        "samplers/noise.py",
        "device=problem.device",
        "device='cpu'",
        ("tests/samplers/test_contract.py::test_never_waits_for_the_device[uniform]",),
    ),
    Fault(
        "a diverged student is kept",
        "dfkd/engine.py",
        "            run.restore()\n",
        "",
        (
            f"{ENGINE}::test_a_loss_that_is_not_finite_stops_the_run",
            f"{ENGINE}::test_a_rate_that_is_too_large_is_found_in_the_parameters",
        ),
    ),
    Fault(
        "accuracy for agreement",
        "dfkd/fidelity/metrics.py",
        'rows = {"agreement": (s.argmax(dim=1) == named).double()}',
        'rows = {"agreement": (s.argmax(dim=1) == (named if y is None else y)).double()}',
        (f"{METRICS}::test_agreement_apart_where_the_teacher_is_right", f"{METRICS}::test_equal_models_are_perfect"),
    ),
    Fault(
        "the control is subtracted the wrong way round",
        "dfkd/fidelity/metrics.py",
        "_mean(rows[name]) - _mean(control[name])",
        "_mean(control[name]) - _mean(rows[name])",
        (f"{METRICS}::test_excess_is_the_student_minus_the_control",),
    ),
    Fault(
        "pickled weights are loaded",
        "dfkd/models/weights.py",
        "weights_only=True",
        "weights_only=False",
        ("tests/dfkd/models/test_loading.py::test_pickled_modules_are_refused_without_running_them",),
    ),
    Fault(
        "stopping forgets what it has heard",
        "dfkd/engine.py",
        'self._fall, self._end, self._flat_at, self._signals = state["stop"]',
        "pass",
        ("tests/dfkd/test_stop.py::test_interrupted_and_continued_stops_at_the_same_step",),
    ),
    Fault(
        "listening to the student moves the sampler",
        "dfkd/fidelity/selfcheck.py",
        "            state.load_state_dict(before)\n",
        "",
        ("tests/dfkd/fidelity/test_selfcheck.py::test_listening_does_not_change_the_run",),
    ),
    Fault(
        "the scout likes images far from the teacher's data",
        "dfkd/scouting.py",
        '"batchnorm_gauss": False',
        '"batchnorm_gauss": True',
        ("tests/dfkd/test_scouting.py::test_score_by_hand",),
    ),
    Fault(
        "the mirrored way back is not turned",
        "samplers/energy.py",
        "back = (x - z + rate * sign * slope_y) / std",
        "back = (x - z + rate * slope_y) / std",
        ("tests/samplers/test_energy.py::test_exact_rows_stay_exact",),
    ),
    Fault(
        "the best part counts the most",
        "samplers/robust.py",
        "state.log_weights + self.rate * often",
        "state.log_weights - self.rate * often",
        ("tests/samplers/test_robust.py::test_keeps_its_guarantee_where_an_even_mixture_does_not_come_near",),
    ),
    Fault(
        "the step of the latents leaves its gradient in the memory",
        "samplers/ingredients/memory.py",
        "(z.grad,) = torch.autograd.grad(loss, [z])",
        "loss.backward()",
        ("tests/samplers/ingredients/test_memory.py::test_only_the_latents_have_gradients",),
    ),
    Fault(
        "rows that come more often count more as well",
        "samplers/prioritised.py",
        ".pow(-self.correction)",
        ".pow(self.correction)",
        ("tests/samplers/test_prioritised.py::test_weights_are_the_correction_over_the_largest",),
    ),
    Fault(
        "all rows of a draw exchange the same channels",
        "samplers/spaceshipnet.py",
        "torch.rand(n, channels, generator=rng, device=maps.device)",
        "torch.rand(1, channels, generator=rng, device=maps.device).expand(n, -1)",
        ("tests/samplers/test_spaceshipnet.py::test_each_row_has_a_half_of_its_own",),
    ),
    Fault(
        "A generator is judged on images that leave the box",
        "generators/trunk.py",
        "return x.clamp(low, high)",
        "return x",
        (
            "tests/generators/test_trunk.py::test_nothing_leaves_the_box",
            "tests/samplers/test_contract.py::test_draws_images_of_the_spec",
        ),
    ),
    Fault(
        "A decimal entropy weight taken for nats",
        "samplers/dafl.py",
        "LOG10 = 1.0 / math.log(10.0)",
        "LOG10 = 1.0",
        ("tests/samplers/test_dafl.py::test_objective_is_the_published_one",),
    ),
    Fault(
        "A generator that learns is sampled with statistics that move",
        "samplers/ingredients/online.py",
        "part.training, part.track_running_stats = True, False",
        "part.training, part.track_running_stats = True, True",
        ("tests/samplers/ingredients/test_online.py::test_sampling_moves_no_stored_statistic",),
    ),
    Fault(
        "the start of rounds moves by the last step's gradient only",
        "samplers/ingredients/reset.py",
        "start.grad = now.grad.clone() if start.grad is None else start.grad.add_(now.grad)",
        "start.grad = now.grad.clone()",
        ("tests/samplers/ingredients/test_reset.py::test_the_start_moves_by_one_adam_step_a_round",),
    ),
    Fault(
        "a round that nothing is learnt from learns",
        "samplers/ingredients/rounds.py",
        "carried = state.recipe if learn else copy.deepcopy(state.recipe)",
        "carried = state.recipe",
        ("tests/samplers/ingredients/test_rounds.py::test_learns_nothing_where_nothing_is_to_be_learnt",),
    ),
    Fault(
        "CMI's generator goes on where it was",
        "samplers/cmi.py",
        "redraw(generator, rng)  # all of it",
        "pass  # all of it",
        ("tests/samplers/test_cmi.py::test_a_round_begins_anew_but_for_the_head_and_the_features",),
    ),
    Fault(
        "the moving BatchNorm statistics with their shares swapped",
        "samplers/ingredients/batchnorm.py",
        "given=(m * old[0] + (1 - m) * layer.mean",
        "given=((1 - m) * old[0] + m * layer.mean",
        ("tests/samplers/ingredients/test_batchnorm.py::test_the_moving_form_equals_its_definition",),
    ),
    Fault(
        "who teaches learns from it too",
        "dfkd/losses/peers.py",
        "answers[source] if self.attached else answers[source].detach()",
        "answers[source]",
        ("tests/dfkd/losses/test_peers.py::test_gradients_go_to_those_who_are_taught_only",),
    ),
    Fault(
        "mutual learning as a sum over the others",
        "dfkd/losses/peers.py",
        "self.temperature) / len(those)",
        "self.temperature)",
        ("tests/dfkd/losses/test_peers.py::test_mutual_learning_equals_its_definition",),
    ),
    Fault(
        "an averaged teacher without the last step",
        "dfkd/schemes/mean_teacher.py",
        "last.follow()  # the last step's",
        "pass",
        ("tests/dfkd/schemes/test_mean_teacher.py::test_a_run_keeps_the_average_of_all_its_steps",),
    ),
    Fault(
        "an averaged teacher with its shares swapped",
        "dfkd/schemes/mean_teacher.py",
        "ours.lerp_(theirs, 1.0 - self.momentum)",
        "ours.lerp_(theirs, self.momentum)",
        ("tests/dfkd/schemes/test_mean_teacher.py::test_the_average_equals_its_closed_form",),
    ),
    Fault(
        "a gate that weighs rows, not branches",
        "dfkd/schemes/one.py",
        ".softmax(dim=1)",
        ".softmax(dim=0)",
        ("tests/dfkd/schemes/test_one.py::test_the_gate_is_positive_and_sums_to_one",),
    ),
    Fault(
        "an ensemble's mean of logarithms",
        "dfkd/schemes/ensemble.py",
        "log_p.logsumexp(dim=0) - math.log(len(logits))",
        "log_p.mean(dim=0)",
        ("tests/dfkd/schemes/test_ensemble.py::test_softened_answers_equal_their_definition",),
    ),
    Fault(
        "every stage learns from the first teacher",
        "dfkd/schemes/stages.py",
        "teaching = stages[-1].student if stages else teacher",
        "teaching = teacher",
        ("tests/dfkd/schemes/test_stages.py::test_every_stage_distils_the_one_before",),
    ),
    Fault(
        "one scale for all channels of rounded weights",
        "dfkd/models/quantised.py",
        "self.weight.detach().abs().flatten(1).amax(dim=1)",
        "self.weight.detach().abs().amax().expand(len(self.weight))",
        ("tests/dfkd/models/test_quantised.py::test_a_convolution_equals_its_definition",),
    ),
    Fault(
        "ranges of activations move in evaluation",
        "dfkd/models/quantised.py",
        "if self.training:",
        "if True:",
        ("tests/dfkd/models/test_quantised.py::test_the_range_is_a_moving_average_in_training_alone",),
    ),
    Fault(
        "a GAN's critic that takes the made for the real",
        "generators/sn_gan_training.py",
        "return (1.0 - real).relu().mean() + (1.0 + made).relu().mean()",
        "return (1.0 + real).relu().mean() + (1.0 - made).relu().mean()",
        (f"{ADVERSARIES}::test_losses_are_the_hinge",),
    ),
    Fault(
        "a GAN's images from the weights and not their average",
        "generators/sn_gan_training.py",
        "self.average.network(self._latents(n, rng), y)",
        "self.generator(self._latents(n, rng), y)",
        (f"{ADVERSARIES}::test_samples_come_from_the_average_and_move_nothing",),
    ),
    Fault(
        "a GAN's checkpoint forgets the critic",
        "generators/sn_gan_training.py",
        '        self.critic.load_state_dict(state["critic"])',
        "        del state['critic']",
        (f"{ADVERSARIES}::test_interrupted_equals_uninterrupted",),
    ),
    Fault(
        "a GAN's rate stops short of the last",
        "generators/sn_gan_training.py",
        "step / max(1, steps - 1)",
        "step / steps",
        (f"{ADVERSARIES}::test_the_rate_falls_linearly_from_the_first_step_to_the_last",),
    ),
    Fault(
        "a GAN's classes told to the generator but not to the critic",
        "generators/sn_gan_training.py",
        "None if y is None else torch.cat([y, y])",
        "None if y is None else torch.zeros_like(torch.cat([y, y]))",
        (f"{ADVERSARIES}::test_steps_are_their_definition",),
    ),
    Fault(
        "a moving average that moves too far",
        "generators/training.py",
        "mine.lerp_(theirs, 1.0 - keep)",
        "mine.lerp_(theirs, keep)",
        ("tests/generators/test_training.py::test_moving_average_is_its_definition",),
    ),
    Fault(
        "a search that lets latents grow out of their law",
        "samplers/gan.py",
        "z.mul_(length / z.norm(dim=1, keepdim=True).clamp_min(1e-12))",
        "z.mul_(1.0)",
        ("tests/samplers/test_gan.py::test_a_latent_keeps_its_length",),
    ),
    Fault(
        "a generator's classes taken for the teacher's",
        "samplers/gan.py",
        "if labels and self.classes is not None:",
        "if False:",
        ("tests/samplers/test_gan.py::test_refuses_generators_of_other_classes",),
    ),
    Fault(
        "a teacher that has changed is compiled as it was",
        "dfkd/compilation.py",
        "        torch.compiler.reset()",
        "        pass",
        ("tests/dfkd/test_compilation.py::test_compiled_and_plain_students_agree",),
    ),
    Fault(
        "a teacher's statistics change unseen",
        "dfkd/compilation.py",
        "for part in module.modules() for tensor in tensors_in(vars(part))]",
        "for part in module.modules() for tensor in part.parameters()]",
        ("tests/dfkd/test_compilation.py::test_compiled_and_plain_students_agree",),
    ),
    Fault(
        "a student is folded into its teacher",
        "dfkd/engine.py",
        "fixed=not shared",
        "fixed=True",
        ("tests/dfkd/test_compilation.py::test_what_the_student_trains_is_not_folded",),
    ),
    Fault(
        "a checkpoint that takes long is given up",
        "dfkd/runtime.py",
        "elif not self._seen and ",
        "elif ",
        ("tests/dfkd/test_engine.py::test_saving_is_not_given_up",),
    ),
    Fault(
        "two comparisons that write in one folder",
        "dfkd/claim.py",
        "            stack.enter_context(alone_with(folder / LOCK))",
        "            pass",
        ("tests/dfkd/test_comparison.py::test_two_comparisons_do_not_write_in_one_folder",),
    ),
    Fault(
        "a run that begins beside a process that still makes it",
        "dfkd/cells.py",
        '    with alone_with(run / f".{_name(control)}.lock", wait=True):',
        "    if True:",
        ("tests/dfkd/test_comparison.py::test_a_run_waits_for_a_process_that_outlived_its_comparison",),
    ),
    Fault(
        "a run that counts as done though its student is lost",
        "dfkd/cells.py",
        'return record if (run / "scores.jsonl").exists() else None',
        "return record",
        ("tests/dfkd/test_comparison.py::test_a_run_whose_student_is_lost_is_done_again",),
    ),
    Fault(
        "a key that a file has twice, of which the last counts",
        "dfkd/plain.py",
        "            if name in lines:",
        "            if False:",
        ("tests/dfkd/test_plain.py::test_a_key_that_is_there_twice_is_named_with_its_lines",),
    ),
    Fault(
        "a long search that lets no SIGTERM end it",
        "dfkd/runtime.py",
        "> PATIENCE:",
        "> 1e9:",
        ("tests/dfkd/test_engine.py::test_a_step_that_takes_long_is_given_up_after_a_while",),
    ),
    Fault(
        "a manifest silent about what a generator was trained on",
        "dfkd/claim.py",
        'return read | ({"trained_on": trained} if trained else {})',
        "return read | ({})",
        ("tests/samplers/test_gan.py::test_says_what_it_was_trained_on",),
    ),
    Fault(
        "a generator's training begins its random numbers anew",
        "dfkd/train_generator.py",
        'self.stream.load_state_dict(state["stream"])',
        'self.stream.seed, self.stream.step = 0, state["stream"]["step"]',
        ("tests/dfkd/test_train_generator.py::test_interrupted_equals_uninterrupted",),
    ),
    Fault(
        "the clean prediction is led by without the denoiser's gradient",
        "generators/pipeline.py",
        "z = z - steer(step, z, denoiser.decode(predicted(plan, z, output, t)))",
        "z = z - steer(step, z, denoiser.decode(predicted(plan, z, output.detach(), t)))",
        (f"{DIFFUSION}::test_what_is_subtracted_is_the_slope_through_the_denoiser",),
    ),
    Fault(
        "the teacher leads away from its classes",
        "generators/pipeline.py",
        "z = z - steer(step, z,",
        "z = z + steer(step, z,",
        (f"{DIFFUSION}::test_the_teacher_finds_its_classes_likelier",),
    ),
    Fault(
        "an image is led by less, the more are beside it",
        "samplers/diffusion.py",
        "return self.guidance * len(z) * slope",
        "return self.guidance * slope",
        (f"{DIFFUSION}::test_each_row_is_led_as_if_alone",),
    ),
    Fault(
        "a text encoder whose missing weights are drawn at random",
        "generators/pipeline.py",
        "if told.get(what):",
        'if told.get(what) and "text_encoder" not in str(folder):',
        ("tests/generators/test_pipeline.py::test_a_text_encoder_whose_weights_are_not_all_there_is_refused",),
    ),
    Fault(
        "a pipeline that cannot be drawn from is found while a student learns",
        "generators/pipeline.py",
        "            _try(found, folder, device)\n",
        "",
        ("tests/generators/test_pipeline.py::test_what_cannot_be_drawn_from_is_found_when_it_is_read",),
    ),
    Fault(
        "neighbours that faiss has not found are taken for the last row",
        "dfkd/fidelity/neighbours.py",
        "((want == len(rows)) & (part >= 0).all(dim=1))",
        "(want == len(rows))",
        ("tests/dfkd/fidelity/test_neighbours.py::test_numbers_whose_squares_overflow_float32",),
    ),
    Fault(
        "a new bank goes on from the state of a deleted one",
        "dfkd/synthesis.py",
        "        file.unlink(missing_ok=True)  # of a bank whose index was deleted",
        "        pass  # of a bank whose index was deleted",
        ("tests/dfkd/test_synthesis.py::test_the_state_of_a_bank_that_was_deleted_is_not_taken_for_the_next_one",),
    ),
    Fault(
        "classifier-free guidance with its sides swapped",
        "generators/pipeline.py",
        "return unconditional + scale * (conditional - unconditional)",
        "return conditional + scale * (unconditional - conditional)",
        ("tests/generators/test_pipeline.py::test_classifier_free_guidance_is_its_formula",),
    ),
    Fault(
        "every row is told its class",
        "generators/diffusion.py",
        "return y.masked_fill(left_out, self.classes)",
        "return y.masked_fill(left_out & ~left_out, self.classes)",
        (f"{DENOISING}::test_some_rows_are_not_told_their_class",),
    ),
    Fault(
        "images from the network instead of its average",
        "generators/diffusion.py",
        "return on_pixels(self.average.network,",
        "return on_pixels(self.network,",
        (f"{DENOISING}::test_images_come_from_the_average_and_are_pixels",),
    ),
    Fault(
        "a bank's sampler begins anew after an interruption",
        "dfkd/synthesis.py",
        '            self._state.load_state_dict(saved["state"])',
        "            pass",
        ("tests/dfkd/test_synthesis.py::test_a_full_disk_leaves_what_was_written_and_the_same_command_goes_on",),
    ),
    Fault(
        "a bank's images are labelled as others are, not as its sampler says",
        "dfkd/synthesis.py",
        "Batch(to_pixels(x, problem.spec), labelling=batch.labelling)",
        "Batch(to_pixels(x, problem.spec))",
        ("tests/dfkd/test_synthesis.py::test_draws_are_those_of_the_sampler_labelled_as_it_says",),
    ),
    Fault(
        "a row is its own neighbour",
        "dfkd/fidelity/neighbours.py",
        "        squared = squared.masked_fill(found == own[:, None], torch.inf)",
        "        pass",
        ("tests/dfkd/fidelity/test_neighbours.py::test_a_row_is_not_its_own_neighbour_but_its_copies_are",),
    ),
    Fault(
        "the surface is no part of the ball",
        "dfkd/fidelity/neighbours.py",
        "inside[a, b] = exact <= radii[balls][b]",
        "inside[a, b] = exact < radii[balls][b]",
        ("tests/dfkd/fidelity/test_neighbours.py::test_the_neighbour_that_a_radius_was_measured_to_is_within_it",),
    ),
    Fault(
        "precision and recall swapped",
        "dfkd/fidelity/quality.py",
        "of_real, of_fake = membership(fake, real, around_real), membership(real, fake, around_fake)",
        "of_fake, of_real = membership(fake, real, around_real), membership(real, fake, around_fake)",
        ("tests/dfkd/fidelity/test_quality.py::test_a_collapsed_sampler_is_precise_and_covers_nothing",),
    ),
    Fault(
        "a generator's kernel kept by a count of changes that a fused optimiser leaves",
        "generators/doubling.py",
        "if self._prepared is None or not torch.equal(self._prepared[0], weight):",
        "if self._prepared is None or weight._version == 0:",
        ("tests/generators/test_doubling.py::test_follows_its_weights_though_their_kernel_is_kept",),
    ),
    Fault(
        "a seed scored before all its students are there",
        "dfkd/jobs.py",
        "if all(other in results for other in after.get(place, ()))",
        "if any(other in results for other in after.get(place, (place,))) or place not in after",
        ("tests/dfkd/test_jobs.py::test_jobs_that_wait_for_others_begin_as_soon_as_they_may",),
    ),
)


def _copy(place: Path) -> Path:
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, place / name)
    return place


def _failure(place: Path, tests: tuple[str, ...]) -> str:
    """What pytest says last where it fails in this copy, else nothing; ValueError where it could not run the tests."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise ValueError(f"pytest could not run {' '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout[-2000:] if done.returncode else ""


def _found(fault: Fault, place: Path) -> bool:
    file = place / fault.file
    text = file.read_text(encoding="utf-8")
    if fault.right not in text:
        raise ValueError(f"{fault.name}: {fault.file} has no such line any more: {fault.right!r}")
    file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    try:
        return bool(_failure(place, fault.tests))
    finally:
        file.write_text(text, encoding="utf-8")


def main() -> int:
    words = [word.lower() for word in sys.argv[1:]]
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name.lower() for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for worker in range(2):
            copies.put(_copy(Path(folder) / f"copy{worker}"))

        def check(fault: Fault) -> bool:
            place = copies.get()
            try:
                return _found(fault, place)
            finally:
                copies.put(place)

        tests = tuple(dict.fromkeys(test for fault in chosen for test in fault.tests))
        place = copies.get()
        failure = _failure(place, tests)
        copies.put(place)
        if failure:
            print(f"{failure}\nthe tests fail without any fault; mend that first")
            return 1
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(check, chosen))
    for fault, hit in zip(chosen, found, strict=True):
        print(f"{'found    ' if hit else 'NOT FOUND'}  {fault.name}")
    print(f"{len(chosen)} planted, {sum(found)} found")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
