// `terrace`: asks a running terraced, or reads a config file. Parses the command line and hands
// over to one Run function (commands.h).
#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "client/cli/commands.h"

namespace terrace::cli {
namespace {

constexpr char kFooter[] = R"(Examples:
  terrace status                          what the tiers hold, how often they hit
  terrace top --interval 2                the same, live
  terrace mrc                             what more, or less, memory would hit
  terrace ls --limit 20 --prefix 3fa      the first 20 objects whose key starts with 3fa
  terrace show 3fa9c1                     one object, by any unique prefix of its key
  terrace pin 3fa9c1 && terrace flush     keep it, and wait until it is on disk
  terrace verify                          read everything back and compare checksums
  terrace resize host 6GiB                change a tier's size while it serves
  terrace store inspect /var/lib/terrace/nvme   what lies on disk, while no daemon runs
  terrace codec list                      how KV may be encoded, and what that needs
  terrace codec verify chunk.tkv --profile model.tkvp   does every section decode?
  terrace replay --trace trace.jsonl --policy all --capacity-objects 3000,10000,30000
                                          which policy would keep what was wanted again?
  terrace config check terrace.toml       would terraced accept this file?
  terrace config show --effective         what a daemon without a file would run with
  terrace status --json | jq .tiers       every command speaks JSON

Environment: TERRACE_SOCKET and TERRACE_TENANT stand in for --socket and --tenant.

Exit codes: 0 ok, 1 error, 2 usage, 3 daemon not reachable,
            4 verification found corruption, 5 not found)";

constexpr char kSubcommandFooter[] =
    "--socket, --tenant and --json may follow here too. Exit codes: terrace --help";

constexpr char kReplayFooter[] =
    R"(A trace is a Mooncake file (.jsonl), the directory of RAGPulse or its 0_trace.jsonl, or the
experts that a model chose, a token a line; its first line says which.

Examples:
  terrace replay --trace chat.jsonl --capacity-objects 10000 --gap
                      the default policy, and how much of what LRU misses and MIN would hit it hits
  terrace replay --trace chat.jsonl --policy all --capacity-objects 3000,10000,30000 --plot all.png
                      every policy at three sizes, as a table and as a picture
  terrace replay --trace chat.jsonl --capacity-objects 10000 --semantics prefix --window 64
                      as a prefix cache whose scheduler says what the next 64 requests want
  terrace replay --trace rag/ --component passages --capacity-tokens 200000 --json
  terrace replay --trace routing.jsonl --policy lenu,lru --capacity-objects 128
  terrace replay --trace chat.jsonl --tiers hbm=10%,host=20%,pcie=25,nvme=3 --window 64
                      three tiers and a queue of 64: how much less do requests wait than under LRU?

To get the size in objects: bytes of the tier / bytes of an object (terrace show KEY).
Exit codes: terrace --help)";

struct Arguments {
  GlobalOptions global;
  TopOptions top;
  ListOptions list;
  std::vector<std::string> keys;
  double flush_timeout_s = 60;
  ResizeOptions resize;
  StoreInspectOptions store_inspect;
  std::string codec_file;
  CodecVerifyOptions codec_verify;
  ReplayCommand replay;
  ConfigShowOptions config_show;
  std::string config_file;
};

// The Run function of the subcommand that was named.
using Action = std::function<int()>;

void AddGlobals(CLI::App& app, GlobalOptions& global) {
  app.add_option("--socket", global.socket,
                 "Socket of the daemon. Default: where a terraced without configuration listens")
      ->type_name("PATH")
      ->envname("TERRACE_SOCKET");
  app.add_option("--tenant", global.tenant,
                 "Tenant to speak for; needed only when this user belongs to several")
      ->type_name("NAME")
      ->envname("TERRACE_TENANT");
  app.add_flag("--json", global.json, "Print JSON for machines instead of tables for people");
}

void AddObserving(CLI::App& app, Arguments& args, Action& action) {
  app.add_subcommand("status", "Tiers, bytes, objects, hit rates, sessions")->callback([&] {
    action = [&] { return RunStatus(args.global); };
  });
  CLI::App* top = app.add_subcommand("top", "Live view with rates; q or Ctrl-C ends it");
  top->add_option("--interval", args.top.interval_s, "Seconds between samples")
      ->check(CLI::Range(0.05, 3600.0))
      ->capture_default_str();
  top->add_option("--count", args.top.count, "Samples to show; 0: until stopped")
      ->capture_default_str();
  top->callback([&] { action = [&] { return RunTop(args.global, args.top); }; });
  app.add_subcommand("mrc",
                     "Hit rate against size of each tier, and what a GiB more or less is worth")
      ->callback([&] { action = [&] { return RunMrc(args.global); }; });
}

void AddObjects(CLI::App& app, Arguments& args, Action& action) {
  CLI::App* list = app.add_subcommand("ls", "List objects");
  list->add_option("--limit", args.list.limit, "At most so many; 0: all")->capture_default_str();
  list->add_option("--prefix", args.list.prefix, "Only keys that start with these digits")
      ->type_name("HEX");
  list->callback([&] { action = [&] { return RunList(args.global, args.list); }; });

  const auto with_keys = [&](const char* name, const char* help, bool many, Action run) {
    CLI::App* command = app.add_subcommand(name, help);
    CLI::Option* keys =
        command->add_option("KEY", args.keys, "A key, or a prefix that only one key has")
            ->type_name("HEX")
            ->required();
    keys->expected(1, many ? CLI::detail::expected_max_vector_size : 1);
    command->callback([&action, run] { action = run; });
  };
  with_keys("show", "Everything known about one object", false,
            [&] { return RunShow(args.global, args.keys.front()); });
  with_keys("rm", "Remove objects from every tier", true,
            [&] { return RunRemove(args.global, args.keys); });
  with_keys("pin", "Keep objects: never evicted", true,
            [&] { return RunPin(args.global, args.keys, true); });
  with_keys("unpin", "Let pinned objects be evicted again", true,
            [&] { return RunPin(args.global, args.keys, false); });
}

void AddMaintenance(CLI::App& app, Arguments& args, Action& action) {
  CLI::App* flush =
      app.add_subcommand("flush", "Wait until everything committed so far is on disk");
  flush->add_option("--timeout", args.flush_timeout_s, "Seconds to wait; then exit 1")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  flush->callback([&] { action = [&] { return RunFlush(args.global, args.flush_timeout_s); }; });
  app.add_subcommand("verify",
                     "Read everything back and compare checksums; exit 4 and list the keys when "
                     "something is corrupt")
      ->callback([&] { action = [&] { return RunVerify(args.global); }; });
  CLI::App* resize = app.add_subcommand(
      "resize",
      "Change the size of a tier, or of a tenant's part of it, while it serves; wait until that is "
      "done. For root and the user that runs the daemon. The next start, and a reload, go by the "
      "configuration file again");
  resize->add_option("TIER", args.resize.tier, "host or nvme")->required();
  resize
      ->add_option("SIZE", args.resize.size,
                   "6GiB, 512MiB, bytes, or a share as in the configuration: 25%")
      ->required();
  resize
      ->add_option("--tenant", args.resize.tenant,
                   "Only this tenant's part: host_capacity or nvme_capacity")
      ->type_name("NAME");
  resize->add_flag("!--no-wait", args.resize.wait, "Do not wait until it is done");
  resize->callback([&] { action = [&] { return RunResize(args.global, args.resize); }; });
}

void AddStore(CLI::App& app, Arguments& args, Action& action) {
  CLI::App* store = app.add_subcommand("store", "Look at the files of a store, without a daemon");
  store->require_subcommand(1);
  CLI::App* inspect = store->add_subcommand(
      "inspect",
      "List segments, generations, live and dead bytes, and compare every checksum. Changes "
      "nothing; no daemon may serve the store. Exit 4 and list what is wrong, by file and offset, "
      "when anything is");
  inspect->add_option("DIR", args.store_inspect.directory, "nvme.directory of the daemon")
      ->required();
  inspect->add_flag("--records", args.store_inspect.records, "List every record, too");
  inspect->callback(
      [&] { action = [&] { return RunStoreInspect(args.global, args.store_inspect); }; });
}

void AddCodec(CLI::App& app, Arguments& args, Action& action) {
  CLI::App* codec = app.add_subcommand("codec", "Encoded KV and profiles in files, no daemon");
  codec->require_subcommand(1);
  codec->add_subcommand("list", "The codecs: what each is for, and whether it needs a profile")
      ->callback([&] { action = [&] { return RunCodecList(args.global); }; });
  CLI::App* show = codec->add_subcommand(
      "show",
      "What a file says of itself. A container of encoded KV: codec, geometry, tokens, where each "
      "section lies. A profile: model, geometry, form, and the loss measured at each step");
  show->add_option("FILE", args.codec_file, "A container or a profile")->required();
  show->callback([&] { action = [&] { return RunCodecShow(args.global, args.codec_file); }; });
  CLI::App* verify = codec->add_subcommand(
      "verify",
      "Decode every section of a container. Exit 1, naming the section and the tile, at the first "
      "damage");
  verify->add_option("FILE", args.codec_verify.path, "A container of encoded KV")->required();
  verify
      ->add_option("--profile", args.codec_verify.profile,
                   "The profile it was encoded with, for codec profile")
      ->type_name("FILE");
  verify->callback(
      [&] { action = [&] { return RunCodecVerify(args.global, args.codec_verify); }; });
  codec
      ->add_subcommand("bench",
                       "Encode and decode made-up KV with each codec that needs no profile, on one "
                       "core, against a copy. Seconds; a busy machine gives lower figures")
      ->callback([&] { action = [&] { return RunCodecBench(args.global); }; });
}

void AddReplayTiers(CLI::App& replay, ReplayCommand& to) {
  replay
      .add_option_function<std::string>(
          "--tiers",
          [&to](const std::string& text) {
            to.has_tiers = true;
            to.tiers = text;
          },
          "HBM, host and NVMe instead of one tier, beside LRU over the same bytes: KEY=VALUE with "
          "commas of hbm, host (10%, of what the trace names, or 8GiB), pcie, nvme (GB/s), "
          "pcie-us, nvme-us, unit (bytes of a token or an expert), token-us, layer-us (to "
          "compute), victims (of the host, 0 to 1); \"\" for the defaults")
      ->type_name("OPTIONS");
  replay
      .add_option("--hints", to.hints,
                  "With --tiers: what the engine says of the next --window requests")
      ->check(CLI::IsMember({"off", "queue", "random"}))
      ->capture_default_str();
  replay.add_option("--wrong-hints", to.wrong_hints, "Share of hints that name any other object")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  replay.add_flag("--backlog", to.backlog,
                  "With --tiers: all requests wait from the start, whatever their times");
}

void AddReplay(CLI::App& app, Arguments& args, Action& action) {
  ReplayCommand& to = args.replay;
  CLI::App* replay = app.add_subcommand(
      "replay", "Replay a trace of requests through the eviction policies, without a daemon");
  replay->footer("Policies:\n" + ReplayPolicies() + "\n" + kReplayFooter);
  replay->add_option("--trace", to.trace, "Mooncake, RAGPulse or routing")
      ->type_name("FILE")
      ->required();
  replay->add_option("--policy", to.policy, "One or more with commas, or all; see below")
      ->type_name("NAME")
      ->capture_default_str();
  replay
      ->add_option("--capacity-objects", to.capacity_objects,
                   "Size of the tier in objects; several with commas make a table")
      ->type_name("N");
  replay->add_option("--capacity-tokens", to.capacity_tokens, "Instead: its size in tokens")
      ->type_name("N");
  replay
      ->add_option("--semantics", to.semantics,
                   "block: an object that is there is a hit. prefix: only when all before it in "
                   "its prefix hit, too")
      ->check(CLI::IsMember({"block", "prefix"}))
      ->capture_default_str();
  replay->add_option("--window", to.window, "The policy knows what the next N requests want")
      ->type_name("N")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
  replay
      ->add_option("--component", to.component,
                   "RAGPulse: sys_prompt, passages, history, web_search, user_input, some with "
                   "commas; or prompt: all of them as one prefix")
      ->type_name("NAME")
      ->capture_default_str();
  replay->add_option("--flip", to.flip, "Share of wrong bits for policies that take predictions")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  replay->add_option("--seed", to.seed, "Of chance, in policies and in --flip")
      ->capture_default_str();
  replay->add_flag("--gap", to.gap,
                   "Also replay lru and min: the share of their gap that is closed");
  replay->add_option("--plot", to.plot, "Draw hit rates against sizes, with Python's matplotlib")
      ->type_name("FILE.png");
  AddReplayTiers(*replay, to);
  replay->callback([&] { action = [&] { return RunReplay(args.global, args.replay); }; });
}

void AddConfig(CLI::App& app, Arguments& args, Action& action) {
  CLI::App* config = app.add_subcommand("config", "Check and show configuration files");
  config->require_subcommand(1);
  CLI::App* check = config->add_subcommand("check", "Would terraced accept this file?");
  check->add_option("FILE", args.config_file, "TOML file")->required();
  check->callback([&] { action = [&] { return RunConfigCheck(args.global, args.config_file); }; });
  CLI::App* show = config->add_subcommand("show", "Print a configuration as TOML");
  show->add_option("--config", args.config_show.path, "File to show; default: no file at all")
      ->type_name("FILE");
  show->add_flag("--effective", args.config_show.effective,
                 "With every share of memory or disk turned into bytes and every default filled "
                 "in, as the daemon would run");
  show->callback([&] { action = [&] { return RunConfigShow(args.global, args.config_show); }; });
  app.add_subcommand("version", "Print the version")->callback([&] {
    action = [&] { return RunVersion(args.global); };
  });
}

// Only for the list of commands: its options are Python's, so Main takes it before CLI11 does.
void AddCalibrate(CLI::App& app, Action& action) {
  CLI::App* calibrate = app.add_subcommand(
      "calibrate", "Make codec profiles of a model's KV, with Python: calibrate --help");
  calibrate->prefix_command();
  calibrate->callback([calibrate, &action] {
    action = [calibrate] { return RunCalibrate(calibrate->remaining()); };
  });
}

int Main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "calibrate") {
    return RunCalibrate({argv + 2, argv + argc});
  }
  CLI::App app("terrace: see and steer a running terraced", "terrace");
  app.footer(kSubcommandFooter);  // what subcommands inherit as they are added
  app.require_subcommand(1);
  app.fallthrough();  // global options may follow the subcommand
  app.get_formatter()->column_width(34);
  Arguments args;
  Action action;
  AddGlobals(app, args.global);
  AddObserving(app, args, action);
  AddObjects(app, args, action);
  AddMaintenance(app, args, action);
  AddStore(app, args, action);
  AddCodec(app, args, action);
  AddReplay(app, args, action);
  AddConfig(app, args, action);
  AddCalibrate(app, action);
  app.footer(kFooter);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kOk : kUsage;
  }
  return action();
}

}  // namespace
}  // namespace terrace::cli

int main(int argc, char** argv) { return terrace::cli::Main(argc, argv); }
