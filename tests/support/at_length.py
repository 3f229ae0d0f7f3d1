"""Tests that run with --thorough alone, as before a release: others beside them stand for them."""

from __future__ import annotations

import re

_PATTERNS = (
    r"plans/test_rows.py::test_every_rule_is_exact\[(?!1x1|average|depthwise|instance|residual).*-pool\]",
    r"plans/test_maps.py::test_bundled_model_equals_the_oracle\[14x14-stream\]",
    r"plans/test_maps.py::test_lite0_equals_the_oracle_on_imagenet\[14x14\]",
    r"plans/test_maps.py::test_lite1_equals_the_oracle_on_imagenet\[exact-inside-a-block\]",
    r"plans/test_joint_plan.py::test_real_detectors_are_the_dense_plans\[ultraface.*\]",
    r"plans/test_onnx_emission.py::test_an_operation\[.*-(17|18)\]",
    r"plans/test_tokens_plan.py::test_trained_models_equal_the_oracle\[(textures-blocks.-1|shapes.*)\]",
    r"embedding/.*::test_maps_are_the_explainers\[(blocks.11.*|blocks.14/depthwise.*-True-stream)\]",
    r"embedding/.*::test_tokens\[textures-blocks.0\]",
    r"embedding/.*::test_model_api_on_other_forms\[ir(8|16)\]",
    r"embedding/test_embedding.py::test_the_explaining_part_keeps_float32\[auto--1\]",
    r"embedding/.*::test_a_pair_that_is_sure\[sigmoid\]",
    r"embedding/.*::test_onnx_of_fewer_bits\[(dynamic|qoperator)\]",
    r"embedding/.*::test_onnx_gives_the_same_to_onnx_runtime\[.*-21\]",
    r"sources/test_formats.py::test_models_in_low_precision.*\[/blocks.12.*-(dynamic|qoperator|float16)\]",
    r"sources/test_formats.py::test_an_ir_gives_the_maps_of_its_onnx_model\[blocks.12.*\]",
    r"sources/test_formats.py::test_an_ir_gives_the_maps_of_its_onnx_model\[.*-ir16\]",
    r"splitting/test_costs.py::test_layers_says_what_the_plan_does\[lite0\]",
    r"splitting/test_split.py::test_processes_that_split_at_once_share_the_bundle",
    r"cluster/test_cluster.py::test_(evaluate_is_identical|a_lost_machine_loses_no_image)",
    r"test_docs.py::test_commands\[evaluate photos/ --engine ray --methods recipro,random\]",
    r"test_docs.py::test_commands\[bench --layer auto --layer blocks.14 --against stream\]",
    r"test_docs.py::test_commands\[compare model.onnx .* --layer-b blocks.8\]",
    r"report/test_report.py::test_250_images_stay_below_40_mb",
    r"faithfulness/test_verification.py::test_in_the_record_and_in_words",
    r"cli/test_cli.py::test_bench_compares_plans_in_one_run",
    r"faithfulness/test_comparison.py::test_two_layers_of_one_model",
    r"embedding/.*::test_variants\[recipro-pair-True\]",
    r"splitting/test_split.py::test_light_models_split_at_auto\[(?!squeezenet|densenet121|shufflenet).*\]",
    r"faithfulness/test_mosaics.py::test_the_command_plays_it",
    r"test_odd_places.py::test_any_name_of_a_model\[name[1-9]\]",
    r"test_measure_boxes.py::test_a_table_that_resumes",
    r"test_scene_boxes.py::test_maps_point_at_the_right_object",
)


def is_at_length(node: str) -> bool:
    """Whether a test, by its id, is one of them."""
    return any(re.search(pattern, node) for pattern in _PATTERNS)
