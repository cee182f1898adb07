// Light or dark? As the system has it, unless a person chose.

import { byId } from "./dom.js";
import { preference, setPreference } from "./store.js";

export function useTheme() {
  const select = byId("theme");
  select.value = preference("theme", "system");
  const apply = () => {
    if (select.value === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = select.value;
  };
  select.addEventListener("change", () => {
    setPreference("theme", select.value);
    apply();
  });
  apply();
}
