"""Settings that do not go together, each with the line that says so."""

from engine.families import PARTS


def contradictions(cfg, given: dict) -> list[tuple[bool, str]]:
    """[(is it so?, what to say)] for settings that do not go together; `given`: those of the command line."""
    return in_run_and_memory(cfg) + in_players(cfg, given) + in_method(cfg)


def in_run_and_memory(cfg) -> list[tuple[bool, str]]:
    """Those of the run, and of speed and memory."""
    return [
        (
            cfg.name in ("", ".", "..") or "/" in cfg.name or len(cfg.name.encode(errors="replace")) > 200,
            f"--name {cfg.name[:200]!r}: give a plain folder name of at most 200 bytes",
        ),
        (
            not cfg.resume and cfg.stage != "all",
            f"--no-resume deletes the run and begins anew: it does not go with --stage {cfg.stage}",
        ),
        (
            bool(cfg.lora) and cfg.frozen != "vision",
            f"--lora freezes the base and trains adapters of language model and projector: no --frozen {cfg.frozen}",
        ),
        (
            bool(cfg.lora) and cfg.offload == "phase",
            "--lora keeps one base for all players, in use in every phase: --offload phase has nothing to move",
        ),
        (
            cfg.optimizer_offload and cfg.offload == "phase",
            "--optimizer-offload keeps on the host what --offload phase moves there and back: take one of them",
        ),
    ]


def in_players(cfg, given: dict) -> list[tuple[bool, str]]:
    """Those of teachers, judge and warm start."""
    names, has_teachers = cfg.teacher_names, cfg.teacher_use != "none"
    shared = has_teachers and cfg.teacher_rows == "split" and cfg.group_size % len(names) != 0
    return [
        (cfg.taught > 1 and cfg.taught % 1 > 0, f"--taught {cfg.taught}: a share up to 1, or a whole number above"),
        (cfg.taught != 1 and not has_teachers, f"--taught {cfg.taught:g} counts teacher text, and there is none"),
        ("" in names, f"--teachers {cfg.teachers}: an empty name; give A, A,B or NAME=URL"),
        (has_teachers and len(set(names)) < len(names), f"--teachers {cfg.teachers}: the same teacher twice"),
        (shared, f"--group-size {cfg.group_size} cannot be split over {len(names)} teachers; take a multiple"),
        (
            "sft_steps" in given and bool(cfg.sft_data),
            "--sft-data is counted in epochs, not in --sft-steps: sft_epochs in config.py",
        ),
        (bool(cfg.reward) and not cfg.reward.endswith(".py"), f"--reward {cfg.reward}: give a file of Python, FILE.py"),
        (bool(cfg.reward) and "judge" in given, "--reward stands in the judge's place: leave --judge out"),
        (
            cfg.judge.endswith(".py") and not cfg.reward,
            f"--judge {cfg.judge}: a file of yours is given as --reward {cfg.judge}",
        ),
    ]


def in_method(cfg) -> list[tuple[bool, str]]:
    """Those of the switches of a method."""
    has_d, has_teachers = cfg.discriminator != "none", cfg.teacher_use != "none"
    in_group, likelihood = cfg.teacher_use not in ("none", "discriminator"), cfg.advantage == "one"
    unknown = [part for part in cfg.frozen_parts if part not in PARTS]
    return [
        (max(cfg.judged, cfg.judge_wrong) > 1, "--judged and --judge-wrong are shares, between 0 and 1"),
        (bool(unknown), f"--frozen {','.join(unknown)}: unknown; there are {', '.join(PARTS)}, or none"),
        (cfg.algo not in ("grpo", "dr_grpo") and not has_teachers, f"--algo {cfg.algo} needs teachers"),
        (has_d and not has_teachers, f"--similarity {cfg.similarity} is D's, and D reads teacher text: --teacher-use"),
        (cfg.teacher_use == "discriminator" and not has_d, "--teacher-use discriminator needs a --similarity of D"),
        (cfg.d_input != "response" and not has_d, f"--d-input {cfg.d_input} needs a --similarity of D"),
        (
            cfg.d_input != "response" and cfg.taught != 1,
            f"--d-input {cfg.d_input} with --taught: teacher text beside another question would give itself away to D",
        ),
        (cfg.d_loss != "bce" and not has_d, f"--d-loss {cfg.d_loss} needs a --similarity of D"),
        (cfg.d_loss == "pairwise" and cfg.refill, "--d-loss pairwise compares within a step's first draw: no --refill"),
        (cfg.similarity == "gated" and not cfg.judged, "--similarity gated asks for a right answer: no --judged 0"),
        (cfg.discriminator == "frozen" and not cfg.d_steps, "--d-lr 0 and --d-steps 0: such a D has learned nothing"),
        (cfg.similarity == "constant" and not in_group, "--similarity constant marks teacher rows: it needs them"),
        (cfg.similarity == "oracle" and bool(cfg.data), "--similarity oracle knows the tiny world only: no --data"),
        (
            cfg.judged == 0 and cfg.similarity == "none" and not likelihood,
            "no reward: --judged 0 and --similarity none",
        ),
        (likelihood and cfg.mu > 1, f"--algo {cfg.algo} is likelihood and has no ratio to clip: --mu 1"),
        (likelihood and has_d, f"--algo {cfg.algo} has no student rows: nothing for D to tell apart"),
        (likelihood and cfg.teacher_use == "baseline", "--teacher-use baseline leaves nothing to be trained"),
        (likelihood and cfg.refill, f"--algo {cfg.algo} has no groups without a signal: nothing to --refill"),
        (
            cfg.group_size < 2 and (not in_group or cfg.taught != 1),
            "--group-size 1 without teacher rows: a group of one has no advantage",
        ),
    ]
