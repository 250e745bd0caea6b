"""`ir3de fit`: labelled text and the embeddings of any causal LM in, a router out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ir3de.scripts.command import check_folder, command, need, values_of
from ir3de.scripts.data.duplicates import Duplicates
from ir3de.scripts.data.outside import Outside
from ir3de.scripts.data.rows import (
    Report,
    Row,
    RowSource,
    add_data_arguments,
    check_domain_names,
    read_prompts,
    read_rows,
)
from ir3de.scripts.data.validation import Validation, check_apart
from ir3de.scripts.fitting.options import (
    FEW,
    OFFER_MOST_CHARACTERS,
    OFFER_MOST_ROWS,
    FitOptions,
    add_choice_arguments,
    add_minimum_arguments,
)
from ir3de.scripts.reports.words import number_of

if TYPE_CHECKING:  # these load torch, which nobody who asks for help waits for
    from ir3de.samples_ir3de import Sample
    from ir3de.scripts.fitting.fit import Fitted
    from ir3de.second_opinion_ir3de import SecondOpinion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de fit`."""
    add_data_arguments(parser, required=False)
    parser.add_argument(
        "--embeddings",
        required=True,
        metavar="SOURCE",
        help="Hub id or folder of any causal LM, or of a static embedding model (sentence-transformers, model2vec)",
    )
    parser.add_argument("--revision", help="revision of SOURCE")
    parser.add_argument("--gguf-file", help="name of the GGUF file, where the weights of SOURCE are GGUF")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the router")
    parser.add_argument("--experts", metavar="YAML", help="list of expert specs; by default each domain routes only")
    parser.add_argument(
        "--group-column", metavar="NAME", help="column of what is held out together, such as a customer or a template"
    )
    parser.add_argument(
        "--validation", action="append", metavar="DATA", help="labelled prompts, as --data, that are only measured on"
    )
    parser.add_argument(
        "--outside",
        action="append",
        metavar="DATA",
        help="prompts of none of the domains: familiarity learns from them where it pays, and says how many it notices",
    )
    parser.add_argument(
        "--second", action="store_true", help="fit a second opinion to the same rows too, and say what it gives"
    )
    add_minimum_arguments(parser)
    samples = "JSON Lines of a few prompts with text and domain, that travel with the router as examples for an app"
    parser.add_argument("--samples", metavar="FILE", help=f"{samples}: whoever can read the router reads them")
    parser.add_argument(
        "--outcomes",
        action="append",
        default=[],
        metavar="FILE",
        help="what experts scored on prompts, as `ir3de outcomes` takes it: these become the experts, and the prompts'"
        " `domain` or `source` the domains, unless --data gives labelled text; repeatable",
    )
    parser.add_argument("--outcomes-split", metavar="SPLIT", help="of --outcomes, only rows whose `split` is this")
    parser.add_argument(
        "--discover",
        metavar="N",
        help="make domains of clusters of the outcomes' prompts: so many, or as many as outcomes ask for (auto)",
    )
    add_choice_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Fits a router and saves it."""
    from ir3de.configuration_ir3de import IR3DEConfig
    from ir3de.samples_ir3de import read_samples
    from ir3de.scripts.data.experts import read_experts
    from ir3de.scripts.data.sources import gguf_of, load_source, public_name
    from ir3de.scripts.fitting.fit import check_before, fit_rows

    check_folder(args.output)
    _check_together(args.data, args.outcomes, args.discover, args.second)
    options, source, duplicates = values_of(FitOptions, vars(args)), RowSource.of(**vars(args)), Duplicates()
    options.check_minimums()
    if args.discover:
        need("sklearn", "benchmark", "Discovering domains needs scikit-learn")
    number = _number_of_domains(args.discover)
    outside, validation = _outside(source, args.outside or ()), _validation(source, args.validation or ())
    source = replace(source, group_column=args.group_column)
    samples = read_samples(args.samples) if args.samples else None
    gguf_file = args.gguf_file or gguf_of(args.embeddings)
    specs = read_experts(args.experts) if args.experts else []
    apart = any("domains" in spec for spec in specs)  # whether there are domains is known once the data are read
    config = IR3DEConfig(
        experts=[] if args.outcomes or apart else specs,
        embedding_model=public_name(args.embeddings),
        embedding_revision=args.revision,
        embedding_gguf_file=gguf_file,
        datasets=source.hub_ids or None,
        **options.config_fields(),
    )
    domains = check_domain_names(source)  # as far as they are known before all rows are read
    _check_samples(samples, domains)
    outside.check(domains or ())
    if domains is not None and not args.outcomes:
        check_before(config, specs, options, domains)
    if domains is not None and (outside or validation):
        check_apart(read_rows(replace(source, skip_bad_rows=True), Report()), outside, validation)
    tokenizer, embeddings = load_source(args.embeddings, args.revision, gguf_file)
    opinion = _second(args.second)
    kept: list[Row] = []
    rows = duplicates.watch(read_rows(source)) if args.data else None
    if rows is not None:
        rows = _keeping(rows, kept, None if opinion is not None else OFFER_MOST_ROWS)
    if args.outcomes:
        from ir3de.scripts.fitting.outcomes import JudgedFile, fit_with_outcomes

        files = [JudgedFile.read(file, args.outcomes_split) for file in args.outcomes]
        made = fit_with_outcomes(
            config, tokenizer, embeddings, files, options, rows, specs, number, bool(args.discover), outside, validation
        )
        fitted = made.fitted
        for each in made.tried:
            print(f"{each.number} domains: error {each.error:.4f}, held-out score {100 * each.score:.2f}")
    else:
        apart_specs = specs if apart else ()
        fitted = fit_rows(config, tokenizer, embeddings, rows or (), options, outside, validation, apart_specs)
    for note in [*duplicates.notes(), *fitted.notes]:
        print(note, file=sys.stderr)
    print(fitted.describe())
    if opinion is not None:
        _fit_second(opinion, fitted, kept)
    _save(fitted, samples, args.output)
    if opinion is None and min(map(len, fitted.held_out.values())) < FEW:
        print(_offer_of_second(fitted, () if args.outcomes else kept, args.output))
    return 0


def _check_together(
    data: Sequence[str] | None, outcomes: Sequence[str], discover: str | None, with_second: bool
) -> None:
    """Raises ValueError where options do not go together."""
    if not data and not outcomes:
        raise ValueError("Give labelled text with --data, or outcomes with --outcomes.")
    if discover and (data or not outcomes):
        raise ValueError("--discover makes domains of the prompts of --outcomes, so it goes with these and no --data.")
    if with_second and (outcomes or not data):
        raise ValueError("--second takes the rows of --data alone: with --outcomes, make one with `ir3de second`.")


def _check_samples(samples: list[Sample] | None, domains: set[str] | None) -> None:
    """Raises ValueError where a sample is of a domain that the data do not have, as far as these are known."""
    unknown = sorted({sample.domain for sample in samples or ()} - (domains or set()))
    if unknown and domains:
        raise ValueError(
            f"--samples has prompts of {unknown}, but the training rows are of {sorted(domains)}: name the domains"
            " alike, or leave these prompts out."
        )


def _save(fitted: Fitted, samples: list[Sample] | None, output: str) -> None:
    """Saves the router, and says what is in it and what it is for."""
    from ir3de.samples_ir3de import SAMPLES_NAME
    from ir3de.specs_ir3de import has_source

    model, config = fitted.model, fitted.model.config
    if samples is not None:
        model.samples = samples
    model.save_pretrained(output)
    skipped = f" ({fitted.skipped} rows without a token were left out)" if fitted.skipped else ""
    domains = f" and {len(config.domain_names)} domains" if config.domains else ""
    print(f"Saved a router of {len(config.expert_names)} experts{domains} to {output}{skipped}.")
    if samples:
        prompts = number_of(len(samples), "prompt", "prompts")
        print(f"Its {SAMPLES_NAME} holds the text of {prompts}, which whoever can read the router reads.")
    mute = [spec["name"] for spec in config.specs if not has_source(spec)]
    if mute:
        who = "Its experts" if len(mute) == len(config.specs) else f"{len(mute)} of its experts"
        one = shlex.quote(mute[0])
        print(f"{who} only route. To let one answer: ir3de experts {shlex.quote(output)} --set {one} model=ORG/LLM")
    print(f'Try it: ir3de route {shlex.quote(output)} "a prompt"')


def _keeping(rows: Iterable[Row], kept: list[Row], most: int | None) -> Iterator[Row]:
    """Hands rows on, and keeps them too, but of more than are wanted only one more."""
    for row in rows:
        if most is None or len(kept) <= most:
            kept.append(row)
        yield row


def _second(wanted: bool) -> SecondOpinion | None:
    """A second opinion that is yet to be fitted, if one is wanted."""
    if not wanted:
        return None
    from ir3de.scripts.fitting.second import ready

    return ready()


def _offer_of_second(fitted: Fitted, rows: Sequence[Row], output: str) -> str:
    """What a second opinion would give to a router of few rows: measured where its encoder is on this machine and reads
    them in seconds, and else only that it is worth a try.
    """
    from ir3de.scripts.fitting.second import worth_a_try
    from ir3de.scripts.reports.second import describe_offer
    from ir3de.scripts.routers.encoders import encoder_at_hand

    few = len(rows) <= OFFER_MOST_ROWS and sum(len(row.text) for row in rows) <= OFFER_MOST_CHARACTERS
    encoder = encoder_at_hand() if rows and few else None
    if encoder is not None:
        try:
            return describe_offer(*worth_a_try(fitted, rows, encoder), fitted.chosen.standard_error, output)
        except (ImportError, OSError):  # it is there, and not whole
            pass
    return (
        f"With few rows try --second, or `ir3de second {shlex.quote(output)} --data ...`: it measures what a second"
        " opinion gives."
    )


def _fit_second(opinion: SecondOpinion, fitted: Fitted, rows: Sequence[Row]) -> None:
    """Fits a second opinion to the rows of a fit, says what it gives, and makes it the router's."""
    from ir3de.scripts.fitting.second import fit_beside
    from ir3de.scripts.reports.second import describe

    figures, number = fit_beside(opinion, fitted, rows)
    print(describe(figures, number))
    print("They were held out from the router, and each left out of the second opinion's fit.")
    fitted.model.second_opinion = opinion


def _outside(source: RowSource, data: Sequence[str]) -> Outside:
    """Prompts of none of the domains."""
    if not data:
        return Outside()
    place = replace(source, sources=tuple(data), where=())
    return Outside(list(read_prompts(place)))


def _validation(source: RowSource, data: Sequence[str]) -> Validation:
    """Labelled prompts to measure on."""
    return Validation(list(read_rows(replace(source, sources=tuple(data), where=()))) if data else [])


def _number_of_domains(text: str | None) -> int | None:
    """How many domains to discover; None where it is to be chosen, or none are."""
    if text in (None, "auto"):
        return None
    if not text.isdecimal() or not 2 <= int(text) <= 1000:
        raise ValueError(f"--discover takes a whole number from 2 to 1000, or auto; got {text!r}.")
    return int(text)


main = command("fit", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
