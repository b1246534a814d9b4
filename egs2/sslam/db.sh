# shellcheck shell=bash disable=SC2034
# Where the corpora are, for --corpus without --corpus_dir. Edit the lines, or set the
# variables outside. `mini` needs none: stage 1 makes it. local/download.sh fetches what
# may be fetched, and says where the rest comes from.
AUDIOSET="${AUDIOSET:-}"             # the four CSVs, and the audio in any sub-folders
ESC50="${ESC50:-}"                   # meta/esc50.csv and audio/
FSD50K="${FSD50K:-}"                 # FSD50K.{dev_audio,eval_audio,ground_truth}/
IDMT_DESED_FL="${IDMT_DESED_FL:-}"   # train/ and test/ with audio and scaper's files
SPASS="${SPASS:-}"                   # SPASS_META_DATA/ and <Scene>_audio_files/
SPEECHCOMMANDS="${SPEECHCOMMANDS:-}" # speech_commands_v0.0?/, and test_set beside it
URBANSED="${URBANSED:-}"             # audio/ and annotations/, each with three splits
FSDD="${FSDD:-}"                     # {digit}_{speaker}_{n}.wav or .flac (asr/)
MANIFEST="${MANIFEST:-}"             # train.tsv, train.lbl, eval.tsv, eval.lbl, ...
AUDIO_FOLDER="${AUDIO_FOLDER:-}"     # any tree of audio files, or a CSV/TSV of them
